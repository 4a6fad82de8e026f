"""Stop strings in a text that comes piece by piece. Knows text; no tokens, no model."""

from collections.abc import Sequence

from kdexport.errors import InputError


class StopScanner:
    """Lets a text through up to the first stop string, which is no part of it.

    The first to be complete counts, and of two that end together the longer: what is let through
    does not depend on how the text is cut into pieces. What may still become a stop string is held
    back until it does not.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InputError("an empty stop string would end every text", where="stop")
        self._stops = tuple(stops)
        self._beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add a piece; return the text that is now certain."""
        if not self._stops or self.stopped:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [
            (begin + len(stop), begin) for stop in self._stops if (begin := text.find(stop)) >= 0
        ]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        size = min(len(text), self._longest - 1)
        while size and text[-size:] not in self._beginnings:
            size -= 1
        certain = len(text) - size
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
