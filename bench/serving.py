"""Many streaming clients of `kdexport serve` beside one.

    python bench/serving.py exported/quickstart-int8 --clients 32

Starts the server in a process of its own and asks it in rounds: one client, then all at once, each
with a prompt of its own (random tokens) for `--new` tokens. /health is asked all the while. Writes
JSON to stdout: tokens per second of all clients together, their ratio to one's in the same round,
time to first token, /health's p99, and how many answers were no 200.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record  # noqa: E402
from kdexport.bundle import open_bundle  # noqa: E402

HEALTH_SECONDS = 0.02  # between two questions


@dataclass
class Asked:
    """What one request got: status, tokens, seconds to the first and to the last of them."""

    status: int = 0
    n_tokens: int = 0
    first: float = 0.0
    last: float = 0.0


@dataclass
class Round:
    """One round of clients."""

    asked: list[Asked]
    seconds: float
    health_ms: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.n_tokens for one in self.asked) / self.seconds


class Target:
    """A server, asked over plain sockets: a client's own work must not be what is measured."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80

    async def _ask(self, method: str, path: str, body: bytes) -> tuple[bytes, float, float]:
        """The answer, and the seconds to the first bytes after its head and to its end."""
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = bytearray(await reader.readuntil(b"\r\n\r\n"))
        first = 0.0
        while part := await reader.read(65536):
            first = first or time.perf_counter() - began
            answer += part
        writer.close()
        return bytes(answer), first, time.perf_counter() - began

    async def write(self, body: dict[str, Any]) -> Asked:
        answer, first, last = await self._ask("POST", "/v1/completions", json.dumps(body).encode())
        counts = re.findall(rb'"completion_tokens":(\d+)', answer)
        return Asked(int(answer.split()[1]), int(counts[-1]) if counts else 0, first, last)

    async def health_ms(self) -> float:
        return 1000 * (await self._ask("GET", "/health", b""))[2]


async def ask_all(target: Target, bodies: list[dict[str, Any]]) -> Round:
    """All at once, with /health asked meanwhile."""
    health: list[float] = []

    async def watch() -> None:
        while True:
            health.append(await target.health_ms())
            await asyncio.sleep(HEALTH_SECONDS)

    watching = asyncio.ensure_future(watch())
    began = time.perf_counter()
    asked = await asyncio.gather(*(target.write(body) for body in bodies))
    seconds = time.perf_counter() - began
    watching.cancel()
    return Round(list(asked), seconds, health)


async def measure(url: str, asked: argparse.Namespace, model: str, vocab_size: int) -> Any:
    target, draw = Target(url), random.Random(0)

    def body() -> dict[str, Any]:
        return {
            "model": model,
            "prompt": [draw.randrange(vocab_size) for _ in range(asked.prompt)],
            "max_tokens": asked.new,
            "min_tokens": asked.new,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    await ask_all(target, [body()])  # to be warm
    one, many = [], []
    for _ in range(asked.rounds):
        one.append(await ask_all(target, [body()]))
        many.append(await ask_all(target, [body() for _ in range(asked.clients)]))
    health = sorted(ms for found in many for ms in found.health_ms)
    answers = [answer for found in (*one, *many) for answer in found.asked]
    firsts = sorted(1000 * answer.first for found in many for answer in found.asked)
    return {
        "clients": asked.clients,
        "prompt_tokens": asked.prompt,
        "new_tokens": asked.new,
        "tok_s_one": [round(found.tokens_per_second, 1) for found in one],
        "tok_s_all": [round(found.tokens_per_second, 1) for found in many],
        "ratio": [
            round(b.tokens_per_second / a.tokens_per_second, 2)
            for a, b in zip(one, many, strict=True)
        ],
        "ttft_ms_p50": round(firsts[len(firsts) // 2], 1),
        "ttft_ms_max": round(firsts[-1], 1),
        "health_ms_p99": round(health[int(0.99 * (len(health) - 1))], 1),
        "n_health": len(health),
        "n_not_200": sum(answer.status != 200 for answer in answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    manifest = open_bundle(asked.bundle).manifest
    command = [sys.executable, "-m", "kdexport", "serve", str(asked.bundle), "--port", "0"]
    command += ["--max-batch", str(asked.clients)]
    command += ["--threads", str(asked.threads)] if asked.threads else []
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr
        told = server.stderr.readline()
        found = re.search(r"listening on (http://\S+),", told)
        if not found or "is loaded" not in server.stderr.readline():
            raise SystemExit(told)
        measured = measure(found[1], asked, manifest.name, manifest.model.vocab_size)
        print(json.dumps({**record(__file__), **asyncio.run(measured)}, indent=2))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    main()
