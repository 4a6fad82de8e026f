"""What is answered to a request that is not served, in the form of OpenAI's API."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kdexport.errors import InputError
from kdexport.serve.jobs import BusyError, TookTooLongError, UnavailableError

LOADING_SECONDS = 2  # after which to ask again


@dataclass
class RefusedError(Exception):
    """A request that is not served. ``param``: the field that is wrong, if one is."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


def refusal_of(error: Exception) -> RefusedError:
    """The answer to whatever went wrong; 500 for a mistake of ours, without its words."""
    match error:
        case RefusedError():
            return error
        case ValidationError():
            return _of_fields(error)
        case BusyError():
            after = {"Retry-After": str(error.seconds)}
            return RefusedError(429, str(error), code="queue_full", headers=after)
        case UnavailableError():
            after = {"Retry-After": str(LOADING_SECONDS)}
            return RefusedError(503, str(error), code="unavailable", headers=after)
        case TookTooLongError():
            return RefusedError(504, str(error), code="timeout")
        case InputError():
            return _of_input(error)
    words = "an error of the server's; its log has more"
    closes = {"Connection": "close"}  # uvicorn does so after an error: nobody is to ask on it again
    return RefusedError(500, words, code="internal_error", headers=closes)


def _of_input(error: InputError) -> RefusedError:
    """Without the place of a file, which is the server's own matter."""
    words = f"{error.message}; {error.remedy}" if error.remedy else error.message
    if error.where.isidentifier():
        return RefusedError(400, f"{error.where}: {words}", error.where)
    return RefusedError(400, words)


def _of_fields(error: ValidationError) -> RefusedError:
    """The first field that is wrong, by its name."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return RefusedError(400, f"{place!r} is not supported here", place, "unsupported_parameter")
    words = first["msg"].removeprefix("Value error, ").replace("Tuple", "List")
    return RefusedError(400, f"{place}: {words}" if place else words, place or None)
