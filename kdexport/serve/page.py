"""The page at /: its files, read once, each a route of its own. Knows not what is in them."""

from collections.abc import Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = "site"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """A route for each file of the page; ``index.html`` is /."""
    found = []
    for entry in sorted(files("kdexport.serve").joinpath(FOLDER).iterdir(), key=str):
        kind = KINDS.get(entry.name[entry.name.rfind(".") :])
        if kind:
            path = "/" if entry.name == "index.html" else f"/{FOLDER}/{entry.name}"
            found.append(Route(path, _answering(entry.read_bytes(), kind)))
    return found


def _answering(content: bytes, kind: str) -> Callable[[Request], Response]:
    headers = {"Content-Type": kind, "Cache-Control": "no-cache"}
    return lambda request: Response(content, headers=headers)
