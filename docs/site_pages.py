"""What `mkdocs.yml` adds to the pages of docs/: the repository's own pages, and the help texts of the command.

The documents stay readable as plain files, so their links are those of the repository. Here the links between docs/
and the files beside it become links between pages. The last step looks into what was built: a page that would load
anything from another host fails the build.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files of the root, and the pages that they become."""
_LOADS = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 -- installed for `make docs` only

    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=with_links_of_pages((ROOT / name).read_text("utf-8"), "")))
    files.append(File.generated(config, "reference/command.md", content=command()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to files of the root into links to their pages."""
    return with_links_of_pages(markdown, "../" * page.file.src_uri.count("/"))


def on_post_build(config: Any) -> None:
    """Fail if a page would load anything from another host.

    Raises:
        PluginError: it names the page and the tag.
    """
    from mkdocs.exceptions import PluginError  # noqa: PLC0415 -- as above

    for page in sorted(Path(config.site_dir).rglob("*.html")):
        found = _LOADS.search(page.read_text("utf-8"))
        if found is not None:
            raise PluginError(f"{page.name} loads from another host: {found[0]}")


def with_links_of_pages(text: str, up: str) -> str:
    """A document with the links of the site.

    Args:
        up: from the document's page to the top of the site, such as `../`.
    """
    text = text.replace("](docs/", "](").replace("](LICENSE)", "](https://opensource.org/license/mit)")
    for name, page in PAGES.items():
        text = re.sub(rf"\]\((?:\.\./)*{name}(?=[)#])", f"]({up}{page}", text)
    return text


def command() -> str:
    """A page with the help text of each command."""
    from runtime.cli import cli  # noqa: PLC0415 -- a test imports this file for its links only

    parts = ["# The command\n\nWhat `lanes COMMAND --help` prints.\n"]
    for name, one in commands(cli, "lanes"):
        context = click.Context(one, info_name=name, max_content_width=100, terminal_width=100)
        parts.append(f"## {name}\n\n```text\n{one.get_help(context)}\n```\n")
    return "\n".join(parts)


def commands(group: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with their full names."""
    yield name, group
    for below, one in sorted(getattr(group, "commands", {}).items()):
        yield from commands(one, f"{name} {below}")
