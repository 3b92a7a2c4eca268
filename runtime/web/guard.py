"""Who may see the pages, and whose orders count. Around the whole application, so that no page can forget it.

Without a token, pages are for this machine alone: the client's address has to be that of the machine itself, and so has
the name that the browser has asked for, or a page of another site could ask in its reader's name once that site's own
name leads to this machine (DNS rebinding). A token may come from anywhere: in the address of a first visit, in the form
that others get, or in `Authorization`. It is exchanged for a cookie that scripts and other sites cannot use.

An order needs control to be allowed, a page of ours it was given on (`Sec-Fetch-Site`, else `Origin`), and the secret
that stands in each of our forms.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

LEAST_TOKEN = 16
ALLOWED_TOKEN = f"{LEAST_TOKEN} to 200 printable characters of ASCII, without spaces"
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_A_YEAR_S = 365 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Decides about each request.

    Args:
        token: what a visitor has to have; `None`: only this machine may visit.
        hosts: names besides those of this machine that pages may be asked for under without a token; who may visit is
            then the business of what answers to these names.
        passing: whether the token is of this process alone: a browser forgets its cookie when the browser ends.

    Raises:
        ValueError: the token is too short or cannot be sent.
    """

    def __init__(
        self, token: str | None, hosts: Collection[str], *, allow_control: bool, passing: bool = False
    ) -> None:
        if token is not None and not is_good(token):
            raise ValueError(f"token: {len(token)} characters that are not allowed; allowed: {ALLOWED_TOKEN}")
        self.allow_control = allow_control
        self._lasts_s = None if passing else _A_YEAR_S
        self.form_secret = secrets.token_urlsafe(24)
        """Stands in each form."""
        self._token = token
        self._hosts = frozenset(host.lower() for host in hosts)
        # Ports of one host share their cookies, so the name is the token's own.
        self._cookie_name = f"lanes-dashboard-{hashlib.sha256((token or '').encode()).hexdigest()[:8]}"
        self._cookie = "" if token is None else hmac.new(token.encode(), b"lanes dashboard", hashlib.sha256).hexdigest()

    @property
    def wants_token(self) -> bool:
        """Whether a visitor has to have a token."""
        return self._token is not None

    def refusal(self, request: Request) -> Response | None:
        """Why a request is not answered; `None` if its sender may see the pages."""
        if self._token is None:
            return self._not_from_here(request)
        if self._is_known(request):
            given = request.query_params.get("token")
            return None if given is None else self._welcome(request)  # the token is to leave the address
        if request.method == "GET" and self.is_token(request.query_params.get("token", "")):
            return self._welcome(request)
        return PlainTextResponse("a token is needed", 401, {"WWW-Authenticate": "Bearer"})

    def _not_from_here(self, request: Request) -> Response | None:
        name = host_of(request)
        if name in self._hosts:
            return None
        if name not in _LOOPBACK_NAMES:
            why = f"without a token, pages are answered under the names of this machine only, and not under {name!r}"
        elif request.client is not None and not _is_loopback(request.client.host):
            why = "without a token, pages are answered to this machine only"
        else:
            return None
        return PlainTextResponse(f"{why}; start the dashboard with a token\n", 403)

    def _is_known(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return _same(request.cookies.get(self._cookie_name, ""), self._cookie)

    def is_token(self, given: str) -> bool:
        """Whether that is the token. Takes as long for a nearly right one."""
        return self._token is not None and _same(given, self._token)

    def _welcome(self, request: Request) -> Response:
        url = request.url.remove_query_params("token")
        page = url.path.rpartition("/")[2]  # beside where we are: never another host
        return self.admit(request, f"./{page}{'?' if url.query else ''}{url.query}")

    def admit(self, request: Request, to: str) -> Response:
        """Send a visitor who has shown the token on, with the cookie."""
        response = RedirectResponse(to, 303)
        secure = request.url.scheme == "https"
        path = request.scope.get("root_path", "") or "/"
        response.set_cookie(
            self._cookie_name,
            self._cookie,
            max_age=self._lasts_s,
            path=path,
            secure=secure,
            httponly=True,
            samesite="strict",
        )
        return response

    def disorder(self, request: Request, form_secret: str) -> str:
        """Why an order does not count; empty if it does."""
        if not self.allow_control:
            return "this dashboard only shows; it was started without control"
        if why := foreign(request):
            return why
        if not _same(form_secret, self.form_secret):
            return "the form is of an earlier process, or of none of our pages: load the page again"
        return ""


def is_good(token: str) -> bool:
    """Whether that can be a token."""
    return LEAST_TOKEN <= len(token) <= 200 and token.isascii() and token.isprintable() and " " not in token


def is_local(host: str) -> bool:
    """Whether only this machine can connect to an address that is listened at."""
    return host == "localhost" or _is_loopback(host)


def foreign(request: Request) -> str:
    """Why a form was not sent by one of our own pages; empty if it was."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return "" if site == "same-origin" else f"the form was sent by another site ({site})"
    origin = request.headers.get("origin")
    if origin is None:
        return "the request does not say which page has sent it (Origin)"
    return "" if urlsplit(origin).netloc == request.headers.get("host") else f"the form was sent by {origin!r:.100}"


def host_of(request: Request) -> str:
    """The name that was asked for, without its port."""
    try:
        return (urlsplit(f"//{request.headers.get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())
