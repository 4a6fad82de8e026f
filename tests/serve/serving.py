"""A server in a thread of its own, as tests need it."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from kdexport.bundle import Bundle
from kdexport.serve.copies import Rules
from kdexport.serve.engine import Engine
from kdexport.serve.guard import LOOPBACK
from kdexport.serve.server import Server


@dataclass
class Served:
    """A server that runs, and ways to ask it."""

    url: str
    server: Server

    @property
    def engine(self) -> Engine:
        return self.server.engine

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def wait(self, status: int = 200) -> None:
        with self.http() as client:
            for _ in range(1000):
                if client.get("/health").status_code == status:
                    return
                time.sleep(0.02)
        raise AssertionError(f"/health never came to {status}")

    def wait_for_rest(self) -> None:
        """Until no text is under way."""
        for _ in range(500):
            if self.engine.n_open == 0:
                return
            time.sleep(0.02)
        raise AssertionError("texts are still under way")


@contextmanager
def served(
    bundle: Bundle,
    *,
    key: str | None = None,
    rules: Rules | None = None,
    drain: float = 0,
    **options: Any,
) -> Iterator[Served]:
    """A server on a free port of this machine, ready; it is ended with the block."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    made: list[Server] = []

    async def run() -> None:
        engine = Engine(bundle, n_threads=1, **options)
        made.append(Server(engine, rules=rules, key=key, hosts=LOOPBACK, drain_seconds=drain))
        await made[0].serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    while not made:
        time.sleep(0.01)
    found = Served(url, made[0])
    found.wait()
    try:
        yield found
    finally:
        made[0].handle_exit(signal.SIGTERM, None)
        thread.join(30)
    assert not thread.is_alive()
