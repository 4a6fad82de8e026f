"""A runtime that became slower, as the bench times it and `--compare` tells it.

The clock is the test's own: only what the model computes moves it.
"""

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import Bundle
from kdexport.export.bundles import export_bundle
from kdexport.measuring.arms import _timed
from kdexport.runtime.latency import measure_once, prompt_of
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import load_text
from kdexport.verdict.report import load_report, write_report
from tests.calling import call
from tests.models import make_llama
from tests.verdict.fixture import example_report

N_RUNS, N_NEW, NOISE = 8, 12, 0.03


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("slower")
    return export_bundle(make_llama(folder / "model"), folder / "tiny", name="tiny")


def benched(
    bundle: Bundle, folder: Path, seed: int, slower: float, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A report whose last arm was timed so, a token taking 5 ms times ``slower``."""
    now, pace, draw = [0.0], [1.0], random.Random(seed)
    session, codec = open_session(bundle, n_threads=1), load_text(bundle)
    with monkeypatch.context() as patch:
        run = Session.run

        def taking(self: Session, ids: Any, cache: Any, **options: Any) -> Any:
            now[0] += ids.shape[1] * 0.005 * slower * pace[0]
            return run(self, ids, cache, **options)

        patch.setattr(Session, "run", taking)
        patch.setattr(time, "perf_counter", lambda: now[0])
        runs = []
        for _ in range(N_RUNS):
            pace[0] = draw.gauss(1, NOISE)
            one = measure_once(session, codec, prompt_of(codec, 6), N_NEW)
            runs.append({**asdict(one), "decode_tok_s": one.decode_tok_s})
    base = example_report()
    arms = [*base.arms[:-1], base.arms[-1].model_copy(update=_timed(runs))]
    settings = base.settings.model_copy(update={"n_runs": N_RUNS})
    write_report(base.model_copy(update={"arms": arms, "settings": settings}), folder)
    return folder


def test_a_slower_runtime_is_caught_and_the_same_one_is_not(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = benched(bundle, tmp_path / "old", 1, 1.0, monkeypatch)
    assert load_report(old).arms[-1].decode_mean_tok_s == pytest.approx(200, rel=2 * NOISE)
    same = benched(bundle, tmp_path / "same", 2, 1.0, monkeypatch)
    slower = benched(bundle, tmp_path / "slower", 3, 1.2, monkeypatch)
    limit = ("--fail-if", "regressions>0")
    assert call("bench", "--compare", old, same, *limit) == (0, "")
    code, said = call("bench", "--compare", old, slower, *limit)
    assert code == 1
    assert "student-int8: regressions is 5" in said  # TTFT, TPOT (p50, p90), decode, speed-up
    assert call("bench", "--compare", slower, old, *limit) == (0, "")
