"""`kdexport serve`: a socket, an event loop, and signals that let what is under way end."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from kdexport.bundle import open_bundle
from kdexport.content.brands import load_brand
from kdexport.content.channels import load_channels
from kdexport.data.card import NOT_IDENTIFIED, language_identifier
from kdexport.errors import InputError
from kdexport.serve.app import make_app
from kdexport.serve.copies import Rules
from kdexport.serve.engine import Engine
from kdexport.serve.guard import LOOPBACK

AFTER_DRAINING = 5  # seconds that connections have to take their last bytes
BACKLOG = 512
MOST_CONNECTIONS = 1024
SWITCH_SECONDS = 0.001  # that the event loop waits for the engine's thread each time it has sent


class Server(uvicorn.Server):
    """uvicorn, which goes on to answer while what is under way ends.

    The first signal drains the engine, for ``drain_seconds`` at most, in which new requests are
    answered by 503; the second one ends the process. ``failure``: why the bundle could not be
    loaded.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        rules: Rules | None = None,
        key: str | None = None,
        hosts: Sequence[str] | None = None,
        drain_seconds: float = 30.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._drain_seconds = drain_seconds
        self._on_ready = on_ready
        self._ends = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        app = make_app(engine, rules=rules, key=key, hosts=hosts)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                loop="asyncio",
                http="h11",
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=AFTER_DRAINING,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second."""
        if self._ends.is_set():
            self.should_exit = self.force_exit = True
        self._loop.call_soon_threadsafe(self._ends.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and watch the loading and the end."""
        await super().startup(sockets)
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        try:
            await self.engine.loaded()
        except Exception as error:  # whatever it is, there is nothing to serve
            self.failure = error
        else:
            self._on_ready()
            await self._ends.wait()
            await self.engine.drain(self._drain_seconds)
        await self.engine.close()
        self.should_exit = True


def serve(
    bundle: Path,
    say: Callable[[str], None],
    *,
    host: str,
    port: int,
    threads: int | None,
    max_batch: int,
    queue: int,
    timeout: float,
    drain: float,
    api_key_env: str | None,
    channels_folder: Path | None = None,
    brand_path: Path | None = None,
) -> None:
    """Answer over HTTP until a signal comes. ``say`` is told where, and when the bundle is loaded.

    Raises InputError for a bundle that cannot be opened, an address that cannot be had, and one
    that others can reach without a key.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each client that goes
    sys.setswitchinterval(SWITCH_SECONDS)
    key = _key(api_key_env)
    is_own = host in LOOPBACK
    if key is None and not is_own:
        raise InputError(
            f"{host} may be reached from other machines",
            where="--host",
            remedy="name the variable with a key for them: --api-key-env NAME",
        )
    brand = load_brand(brand_path) if brand_path else None
    rules = Rules(load_channels(channels_folder), brand, language_identifier())
    engine = Engine(
        open_bundle(bundle),
        n_threads=threads,
        max_rows=max_batch,
        max_waiting=queue,
        timeout_seconds=timeout,
        warn=say,
    )
    name = engine.manifest.name
    listening = _listen(host, port)

    async def run() -> None:
        server = Server(
            engine,
            rules=rules,
            key=key,
            hosts=LOOPBACK if is_own else None,
            drain_seconds=drain,
            on_ready=lambda: _loaded(name, rules, say),
        )
        await server.serve(sockets=[listening])
        if server.failure:
            raise server.failure

    address = f"[{host}]" if ":" in host else host
    say(f"listening on http://{address}:{listening.getsockname()[1]}, loading {name}")
    asyncio.run(run())


def _loaded(name: str, rules: Rules, say: Callable[[str], None]) -> None:
    say(f"{name} is loaded")
    if rules.identify is None:
        say(NOT_IDENTIFIED)


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"the variable {name} is empty or not set", where="--api-key-env")
    return key


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be had ({error.strerror})", where="--port"
        ) from None
