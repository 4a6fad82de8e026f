"""Who may ask: the key, requests that another site's page made a browser send, and what a browser
may do with the answers.
"""

import hmac
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kdexport.serve.refusals import RefusedError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer: the page loads what is this server's own and sends nothing elsewhere."""


class Guard:
    """Refuses requests before they reach a route; gives all answers `HEADERS`, and counts them.

    ``key``: what /v1 wants as a bearer token; None: nothing. ``hosts``: names by which the server
    may be asked, since a page can point a name of its own at this machine; None: any. ``count`` is
    told each path and status.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        hosts: Collection[str] | None,
        count: Callable[[str, int], None],
    ) -> None:
        self._app = app
        self._key = key
        self._hosts = hosts
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer with a refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope["path"], message["status"])
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, counted)
            return
        answer = JSONResponse(refusal.body, refusal.status, refusal.headers)
        await answer(scope, receive, counted)

    def _refusal(self, path: str, headers: Headers) -> RefusedError | None:
        host = headers.get("host", "")
        if self._hosts is not None and _address(f"//{host}").hostname not in self._hosts:
            return RefusedError(421, f"this server is not {host!r}")
        origin = headers.get("origin")
        if origin is not None and _address(origin).netloc != host:
            return RefusedError(403, f"pages of {origin!r} may not ask this server")
        if self._key is None or not path.startswith("/v1"):
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._key.encode()):
            return None
        return RefusedError(
            401,
            "the API key is missing or wrong",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _address(text: str) -> SplitResult:
    """The parts of an address; none of what is no address."""
    try:
        return urlsplit(text)
    except ValueError:
        return SplitResult("", "", "", "", "")
