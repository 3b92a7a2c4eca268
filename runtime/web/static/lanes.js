// Keeps a page up to date: replaces the parts that the server says have changed. Without it, reload the page.
"use strict";
(() => {
  const status = document.getElementById("connection");
  const page = new URL(location.href);
  page.searchParams.delete("notice");
  if (page.href !== location.href) history.replaceState(null, "", page);
  if (!document.querySelector("[id^=part_]:not(:empty)") || document.querySelector("[name=token]")) return;
  let lost = null;

  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const busy = (part) => {
    const at = document.activeElement;
    const picked = getSelection();
    return (part.contains(at) && at.matches("input:not([type=hidden]), textarea, select")) ||
      (!picked.isCollapsed && part.contains(picked.anchorNode));
  };
  const mark = (element) => element.id ? `#${CSS.escape(element.id)}`
    : element.matches("a[href]") ? `a[href="${CSS.escape(element.getAttribute("href"))}"]`
    : element.matches("button[value]") ? `button[value="${CSS.escape(element.value)}"]` : null;
  const replace = (part, html) => {
    const at = part.contains(document.activeElement) ? mark(document.activeElement) : null;
    const open = [...part.querySelectorAll("details[open][id]")].map((one) => one.id);
    const scrolled = [...part.querySelectorAll("pre")].map((one) => [one.scrollLeft, one.scrollTop]);
    part.innerHTML = html;
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    part.querySelectorAll("pre").forEach((one, i) => { if (scrolled[i]) one.scrollTo(...scrolled[i]); });
    if (at) part.querySelector(at)?.focus({ preventScroll: true });
  };

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
    const to = { "+": "zoom-in", "-": "zoom-out" }[event.key];
    if (to) document.getElementById(to)?.click();
  });

  const source = new EventSource(page.href);
  source.onopen = () => { lost = null; say("Live"); };
  source.addEventListener("part", (event) => {
    const { id, html } = JSON.parse(event.data);
    const part = document.getElementById(id);
    if (part && !busy(part)) replace(part, html);
  });
  source.onerror = () => {
    lost ??= new Date();
    // A stream ends now and then and comes back within a second: only what lasts is worth a word.
    if (Date.now() - lost > 2500) say(`No connection since ${lost.toLocaleTimeString()}; trying again`);
    if (source.readyState === EventSource.CLOSED) { say("The page is not live any more"); }
  };
  addEventListener("pagehide", () => source.close());
})();
