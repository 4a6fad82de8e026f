"""The stopwatch and the bench time the same, by a clock that only the model moves."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench import document, stopwatch
from kdexport.bundle import Bundle
from kdexport.export.bundles import export_bundle
from kdexport.runtime import latency
from kdexport.runtime.latency import measure_once, prompt_of
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import load_text
from tests.models import make_llama


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("stopwatch")
    return export_bundle(make_llama(folder / "model"), folder / "tiny", name="tiny")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which go on by 0.1 when a prompt is read and by 0.005 for a token."""
    now = [0.0]
    run = Session.run

    def taking(self: Session, ids: Any, cache: Any, **options: Any) -> Any:
        now[0] += 0.1 if ids.shape[1] > 1 else 0.005
        return run(self, ids, cache, **options)

    monkeypatch.setattr(Session, "run", taking)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert stopwatch.time is latency.time is time
    return now


def test_both_take_the_same_time_for_a_token(bundle: Bundle, clock: list[float]) -> None:
    watched = stopwatch.watch(bundle.path, 1, n_texts=3, n_prompt=9, n_new=6)
    assert watched == pytest.approx([5.0] * 3)
    codec = load_text(bundle)
    timed = measure_once(open_session(bundle, n_threads=1), codec, prompt_of(codec, 9), 6)
    assert 1000 / timed.decode_tok_s == pytest.approx(5.0)
    assert timed.ttft_ms == pytest.approx(100)


def test_a_watch_is_a_process_that_answers_in_json(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    few = ["--threads", "1", "--texts", "2", "--prompt", "5", "--new", "3", "--watch"]
    stopwatch.main([str(bundle.path), *few])
    assert json.loads(capsys.readouterr().out) == pytest.approx([5.0, 5.0])


@pytest.mark.parametrize(("watched", "met"), [(10.4, "met"), (9.6, "met"), (10.6, "NOT met")])
def test_rounds_alternate_and_their_median_decides(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    watched: float,
    met: str,
) -> None:
    order: list[str] = []
    drift = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])  # of the machine, from round to round

    def way(name: str, milliseconds: float) -> Any:
        def measured(given: Any) -> list[float]:
            order.append(name)
            scale = next(drift)
            return [scale * milliseconds, scale * milliseconds, 99 * scale]

        return measured

    ways = {"bench": way("bench", 10.0), "stopwatch": way("stopwatch", watched)}
    monkeypatch.setattr(stopwatch, "WAYS", ways)
    out = tmp_path / "stopwatch.json"
    stopwatch.main(["b", "--rounds", "3", "--threads", "1", "--out", str(out)])
    assert order == ["stopwatch", "bench", "bench", "stopwatch", "stopwatch", "bench"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"- median of the rounds {watched / 10:.3f}, bar 1 ± 0.05: {met}"
    page = [*document.sections([out])]
    assert page[1] == "## The bench beside a stopwatch" and page[-1] == printed[-1]
