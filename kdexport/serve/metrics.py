"""What Prometheus reads: requests, tokens, queue, batch and latencies. Knows no HTTP."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kdexport.serve.engine import Engine
from kdexport.serve.jobs import Answer, Piece

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """The measures of one server."""

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "kdexport_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self._read = Counter("kdexport_prompt_tokens", "Tokens of prompts", registry=registry)
        self._written = Counter("kdexport_new_tokens", "Tokens written", registry=registry)
        self._first = Histogram(
            "kdexport_ttft_seconds",
            "From a request's coming to the first token of a text",
            buckets=SECONDS,
            registry=registry,
        )
        self._each = Histogram(
            "kdexport_tpot_seconds",
            "Mean time of a text's tokens after its first",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        waiting = Gauge("kdexport_waiting_texts", "Texts without a row yet", registry=registry)
        waiting.set_function(lambda: engine.n_waiting)
        rows = Gauge("kdexport_batch_rows", "Texts being written", registry=registry)
        rows.set_function(lambda: engine.n_rows)

    def count_request(self, route: str, status: int) -> None:
        """Note an answer that was begun."""
        self._requests.labels(route, str(status)).inc()

    def watch(self, answer: Answer) -> "Watch":
        """Note a request's prompts, and return what notes its pieces."""
        self._read.inc(sum(len(job.prompt_ids) for job in answer.jobs if not job.key))
        return Watch(self, answer)

    def page(self) -> bytes:
        """The measures in Prometheus' text format."""
        return generate_latest(self._registry)

    def _note_text(self, asked_at: float, first: float, last: float, n_tokens: int) -> None:
        self._first.observe(first - asked_at)
        if n_tokens > 1:
            self._each.observe((last - first) / (n_tokens - 1))


class Watch:
    """Times of one request's texts."""

    def __init__(self, metrics: Metrics, answer: Answer) -> None:
        self._metrics = metrics
        self._asked_at = answer.asked_at
        self._began: dict[int, float] = {}
        self._n_tokens: dict[int, int] = {}

    def note(self, piece: Piece) -> None:
        """Count a piece's tokens; at a text's end, its latencies."""
        if not piece.steps:
            return
        now = time.monotonic()
        number = piece.number
        first = self._began.setdefault(number, now)
        self._n_tokens[number] = self._n_tokens.get(number, 0) + len(piece.steps)
        self._metrics._written.inc(len(piece.steps))
        if piece.finish_reason:
            self._metrics._note_text(self._asked_at, first, now, self._n_tokens[number])
