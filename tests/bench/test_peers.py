"""The command in front of its measurements, and one whole run over a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.peers import prepare, text
from bench.peers.arguments import installed_arms, parse, settings_of, wanted_arms
from bench.peers.prepare import Shelf, optimum_flag, plain_folder
from bench.peers.process import Entrant, PeerArm
from kdexport.errors import InputError, KdexportError
from kdexport.sources import ResolvedModel
from kdexport.system.machine import Machine
from tests.models import make_llama

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("peers") / "model")


def peers(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KDEXPORT_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "bench" / "peers.py"), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )


def test_a_tiny_model_goes_through_all_of_it(model: Path, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("\n\n".join(f"{n} shoes and fresh bread. " * 60 for n in range(16)), "utf-8")
    out = tmp_path / "found.json"
    sizes = {"prompt": 8, "new": 4, "long": 20, "deep": 40, "rounds": 2, "threads": 1}
    numbers = [word for name, n in sizes.items() for word in (f"--{name}", n)]
    arms = ("--only", "torch-fp32,int8", "--quick", *numbers, "--text", prose)
    done = peers(tmp_path, "--model", model, *arms, "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    fp32, int8 = (found["arms"][name] for name in ("torch-fp32", "int8"))
    assert len(fp32["decode"]) == len(int8["decode"]) == 2
    # float32 against itself: only the order of sums differs. int8 is near, and not the same.
    assert fp32["kl_prefill"][0] < 1e-9 and fp32["kl_steps"][0] < 1e-9
    assert 1e-7 < int8["kl_prefill"][0] < 0.1 and 1e-7 < int8["kl_steps"][0] < 0.1
    assert fp32["engine"].startswith("PyTorch") and int8["options"] == "scheme int8"
    assert int8["size_mb"][0] < fp32["size_mb"][0]
    assert "batch_gain" in int8 and "batch_gain" not in fp32
    assert any(bar["bar"].startswith("int8 load_s:") for bar in found["bars"])
    assert "| torch-fp32 " in done.stdout and "int8 load_s:" in done.stdout


def test_missing_peers_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(prepare, "ENVIRONMENTS", tmp_path)
    (tmp_path / "genai").mkdir()
    (tmp_path / "genai" / ".installed").touch()
    names = ["int8", "genai-int8", "llama-q8_0", "optimum-int8"]
    with pytest.raises(InputError, match=r"llama-q8_0, optimum-int8; run make peers"):
        installed_arms(names, allow_missing=False)
    assert installed_arms(names, allow_missing=True) == ["int8", "genai-int8"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--only", "int9"), "there is no arm 'int9'; use torch-fp32, int8"),
        (("--bundle", "mine"), "'mine' is not NAME=FOLDER"),
        (("--bundle", "int8=x"), "has the name of another arm"),
        (("--new", "1"), "--new 1: at least 2"),
        (("--deep-rounds", "-1"), "--deep-rounds -1: at least 0"),
    ],
)
def test_wrong_words_are_refused(words: tuple[str, ...], said: str) -> None:
    given = parse([*words])
    with pytest.raises(InputError, match=said):
        settings_of(given)
        wanted_arms(given)


def test_a_refusal_is_one_line_and_a_code(tmp_path: Path) -> None:
    done = peers(tmp_path, "--rounds", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bench/peers.py: --rounds 0: at least 1\n"


def test_a_model_is_given_to_old_and_new_transformers(model: Path, tmp_path: Path) -> None:
    before = json.loads((model / "config.json").read_text("utf-8"))
    folder = plain_folder(Shelf(tmp_path, ResolvedModel(model, "x", "y")))
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["rope_theta"] == before["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"] is None
    assert (folder / "model.safetensors").samefile(model / "model.safetensors")


@pytest.mark.parametrize(
    ("features", "flag"),
    [
        (["avx2"], "--avx2"),
        (["avx2", "vnni"], "--avx2"),  # AVX-VNNI without AVX512
        (["avx2", "avx512"], "--avx512"),
        (["avx2", "avx512", "vnni"], "--avx512_vnni"),
        (["neon", "dotprod"], "--arm64"),
    ],
)
def test_optimum_quantizes_for_the_cpu(
    features: list[str], flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(cpu="some", n_cores=2, features=features)
    monkeypatch.setattr(prepare, "machine_facts", lambda: machine)
    assert optimum_flag() == flag


def test_a_kept_thing_is_made_once_and_replaces_the_old(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, ResolvedModel(tmp_path, "x", "y"))
    made: list[Path] = []
    first = shelf.kept("int8", ["a"], made.append)
    neighbour = shelf.kept("int8-block", ["a"], made.append)
    assert shelf.kept("int8", ["a"], made.append) == first and len(made) == 2
    assert shelf.kept("int8", ["b"], made.append) != first and len(made) == 3
    assert not first.exists() and neighbour.exists()


def test_an_engine_that_fails_says_why(tmp_path: Path) -> None:
    entrant = Entrant("broken", Path(sys.executable), "bench.peers.no_such_engine", tmp_path, [])
    with pytest.raises(KdexportError, match=r"broken: ended early; .*no_such_engine"):
        PeerArm(entrant, 1)


def test_a_text_of_the_users_that_is_too_short_is_refused() -> None:
    class Letters:
        def encode(self, words: str) -> list[int]:
            return [ord(letter) for letter in words]

    assert text.cut_windows(["abcdef", "x", "ghijkl"], Letters(), 2, 3).tolist() == [
        [97, 98, 99],
        [103, 104, 105],
    ]
    with pytest.raises(InputError, match="1 of the texts have 3 tokens, 2 are wanted"):
        text.cut_windows(["abcdef", "x"], Letters(), 2, 3)
