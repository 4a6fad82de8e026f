"""`kdexport serve` as a process: where it listens, how it ends, what it refuses."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kdexport.bundle import Bundle
from tests.serve.serving import served

LONG = {"model": "tiny", "prompt": "a", "max_tokens": 250, "min_tokens": 250, "stream": True}


@contextmanager
def process(*arguments: str | Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command on a free port, and the address that it tells."""
    command = [sys.executable, "-m", "kdexport", "serve", *map(str, arguments), "--port", "0"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr
        line = running.stderr.readline()
        found = re.search(r"listening on (http://\S+),", line)
        assert found, line + running.stderr.read()
        assert "is loaded" in running.stderr.readline()
        yield running, found[1]
    finally:
        running.kill()
        running.communicate()


def refused(*arguments: str | Path, **variables: str) -> str:
    """The line of a command that has to be refused."""
    ran = subprocess.run(
        [sys.executable, "-m", "kdexport", "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    return line


def test_a_signal_lets_what_is_under_way_end(bundle: Bundle) -> None:
    """New requests get 503 meanwhile; all texts come whole; the exit code is 0, stdout silent."""
    options = ["--threads", "1", "--max-batch", "1"]
    with process(bundle.path, *options) as (running, url):
        client = httpx.Client(base_url=url, trust_env=False, timeout=60)
        many = LONG | {"n": 12}
        with client.stream("POST", "/v1/completions", json=many) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            running.send_signal(signal.SIGTERM)
            statuses = set()
            for _ in range(100):
                statuses.add(client.get("/health").status_code)
                if 503 in statuses:
                    break
                time.sleep(0.01)
            late = client.post("/v1/completions", json=LONG)
            assert (late.status_code, "about to end" in late.text) == (503, True)
            assert "retry-after" in late.headers
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert sum('"finish_reason":"length"' in line for line in rest) == 12
        client.close()
        assert running.wait(20) == 0
        assert running.stderr and "Traceback" not in running.stderr.read()


def test_draining_ends_after_its_seconds(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdexport.runtime.session import Session

    run = Session.run

    def slow(self: Session, *arguments: object, **options: object) -> object:
        time.sleep(0.05)
        return run(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "run", slow)
    with served(bundle, drain=0.2) as found, found.http() as http:
        with http.stream("POST", "/v1/completions", json=LONG) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            began = time.monotonic()
            found.server.handle_exit(signal.SIGTERM, None)
            rest = [line for line in lines if line]
        assert 0.2 <= time.monotonic() - began < 5
        assert "the server has ended" in rest[-2] and rest[-1] == "data: [DONE]"


def test_while_loading_health_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdexport.runtime.session import open_session
    from tests.serve import serving

    may_load = threading.Event()

    def slowly(*arguments: object, **options: object) -> object:
        may_load.wait(30)
        return open_session(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("kdexport.serve.engine.open_session", slowly)
    monkeypatch.setattr(serving.Served, "wait", lambda self: None)
    with served(bundle) as found:
        with found.http() as http:
            for _ in range(500):
                try:
                    health = http.get("/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.01)
            assert health.status_code == 503 and health.json()["status"] == "loading"
            early = http.post("/v1/completions", json=LONG)
            assert early.status_code == 503 and "being loaded" in early.text
        may_load.set()
        monkeypatch.undo()
        found.wait()


def test_a_damaged_bundle_is_told_in_a_line(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    damaged = shutil.copytree(bundle.path, tmp_path / "damaged")
    weights = damaged / "onnx" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    ran = subprocess.run(
        [sys.executable, "-m", "kdexport", "serve", damaged, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "model.onnx_data" in ran.stderr.splitlines()[-1]


def test_what_cannot_be_served_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    assert "manifest" in refused(tmp_path)
    assert "--api-key-env" in refused(bundle.path, "--host", "0.0.0.0")
    assert "NO_SUCH" in refused(bundle.path, "--api-key-env", "NO_SUCH")
    assert "EMPTY" in refused(bundle.path, "--api-key-env", "EMPTY", EMPTY=" ")
    with served(bundle) as found:
        port = found.url.rpartition(":")[2]
        assert "cannot be had" in refused(bundle.path, "--port", port)
