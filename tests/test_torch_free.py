"""A bundle runs where torch, transformers, optimum and onnx are not installed.

Made here, with everything; run in an environment that holds the base dependencies only, installed
from a wheel, so that missing package data is found too.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.models import make_llama

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "transformers", "optimum", "onnx", "onnx_ir", "mobius", "safetensors")


@dataclass(frozen=True)
class Laptop:
    """An environment without the extras, and a folder to stand in."""

    python: Path
    folder: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The kdexport command there, with nothing of this checkout in sight."""
        command = [self.python.with_name("kdexport"), *arguments]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=self.folder, env=clean, capture_output=True, text=True, check=False
        )

    def good(self, *arguments: str | Path) -> str:
        """Stdout of a command that has to succeed."""
        ran = self.run(*arguments)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


def pip(*arguments: str | Path) -> None:
    """This environment's pip, which is the pinned one."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(
        "wheel",
        "-q",
        "--no-deps",
        "--build-constraint",
        ROOT / "constraints.txt",
        "-w",
        folder,
        ROOT,
    )
    (path,) = folder.glob("kdexport-*.whl")
    return path


@pytest.fixture(scope="module")
def laptop(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    folder = tmp_path_factory.mktemp("laptop")
    venv.create(folder / "venv", symlinks=os.name != "nt")
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip("--python", python, "install", "-q", "-c", ROOT / "constraints.txt", wheel)
    return Laptop(python, folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tiny model's fp32 and int8 bundle."""
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import quantize_bundle

    folder = tmp_path_factory.mktemp("bundles")
    bundle = export_bundle(make_llama(folder / "model"), folder / "tiny", name="tiny")
    return [bundle.path, quantize_bundle(bundle, "int8", folder / "tiny-int8").path]


def test_the_laptop_has_none_of_the_heavy_libraries(laptop: Laptop) -> None:
    code = f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])"
    ran = subprocess.run(
        [laptop.python, "-c", code], cwd=laptop.folder, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_the_wheel_holds_the_package_data(wheel: Path) -> None:
    import zipfile

    shipped = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "kdexport").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert data - shipped == set()
    assert "kdexport/py.typed" in shipped


def test_help_works(laptop: Laptop) -> None:
    assert "generate" in laptop.good("--help")


def test_generate_writes_the_tokens_asked_for(laptop: Laptop, bundles: list[Path]) -> None:
    for bundle in bundles:
        options = ["--prompt", "Fresh bread", "--max-new-tokens", "8", "--json"]
        once, again = (laptop.good("generate", bundle, *options) for _ in range(2))
        assert json.loads(once)
        assert json.loads(once)["text"] == json.loads(again)["text"]


def test_inspect_tells_the_scheme(laptop: Laptop, bundles: list[Path]) -> None:
    schemes = [json.loads(laptop.good("inspect", b, "--json"))["scheme"] for b in bundles]
    assert schemes == ["fp32", "int8"]
    assert "int8" in laptop.good("inspect", bundles[1])


def test_verify_passes_a_whole_bundle_and_fails_a_changed_one(
    laptop: Laptop, bundles: list[Path]
) -> None:
    import shutil

    assert laptop.run("verify", bundles[1]).returncode == 0
    changed = laptop.folder / "changed"
    shutil.copytree(bundles[1], changed)
    weights = bytearray((changed / "onnx" / "model.onnx_data").read_bytes())
    weights[len(weights) // 2] ^= 1
    (changed / "onnx" / "model.onnx_data").write_bytes(weights)
    ran = laptop.run("verify", changed)
    assert ran.returncode == 1
    assert "onnx/model.onnx_data" in ran.stdout
    refused = laptop.run("generate", changed, "--prompt", "Fresh bread", "--max-new-tokens", "2")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr


def test_bench_measures_latency(laptop: Laptop, bundles: list[Path]) -> None:
    few = ["--runs", "2", "--prompt", "16", "--new", "4", "--threads", "1"]
    report = json.loads(laptop.good("bench", *bundles, *few, "--json"))
    assert len(report["arms"]) == len(bundles)
    for arm in report["arms"]:
        assert arm["ttft_ms"]
        assert all(value > 0 for value in arm["ttft_ms"])
        assert all(value > 0 for value in arm["decode_tok_s"])


def test_eval_scores_texts_beside_a_bundle(laptop: Laptop, bundles: list[Path]) -> None:
    texts = laptop.folder / "own.jsonl"
    texts.write_text('{"prompt": "An ad", "completion": "Fresh bread."}\n')
    few = ["--teacher", bundles[0], "--new", "4", "--threads", "1", "--json"]
    own, teacher = json.loads(laptop.good("eval", bundles[1], texts, *few))["judged"]
    assert own["quality"]["kl_mean"] > teacher["quality"]["kl_mean"] == 0


def test_write_fills_a_table(laptop: Laptop, bundles: list[Path]) -> None:
    briefs, out = laptop.folder / "briefs.csv", laptop.folder / "copies.csv"
    briefs.write_text("id,product,channel\na,Tea,ad_headline\nb,Bread,ad_headline\n")
    few = ["--candidates", "2", "--threads", "1", "--judge", bundles[0], "--json"]
    told = json.loads(laptop.good("write", bundles[1], briefs, "-o", out, *few))
    assert told["n_briefs"] == sum(told["statuses"].values()) == 2
    assert out.read_text("utf-8").count("tiny") == 2


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("distill", "kdexport[train]"),
        ("export", "kdexport[export]"),
        ("serve", "kdexport[serve]"),
    ],
)
def test_what_needs_an_extra_names_it(laptop: Laptop, command: str, extra: str) -> None:
    """One line with the remedy, exit code 2, no traceback."""
    argument = ROOT / "recipes" / "quickstart.yaml"
    if command == "export":
        argument = make_llama(laptop.folder / "model")
    ran = laptop.run(command, argument)
    assert ran.returncode == 2
    assert extra in ran.stderr
    assert "Traceback" not in ran.stderr


def test_serve_answers(laptop: Laptop, wheel: Path, bundles: list[Path]) -> None:
    """Last of all: it adds the libraries of a server, which bring none of the heavy ones."""
    pins = ("-c", ROOT / "constraints.txt")
    pip("--python", laptop.python, "install", "-q", *pins, f"kdexport[serve] @ {wheel.as_uri()}")
    command = [laptop.python.with_name("kdexport"), "serve", bundles[1], "--port", "0"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        command, cwd=laptop.folder, env=clean, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr
        told = server.stderr.readline()
        (url,) = re.findall(r"listening on (http://\S+),", told)
        assert "loaded" in server.stderr.readline()
        body = json.dumps({"model": "tiny-int8", "prompt": "Fresh", "max_tokens": 4}).encode()
        with urllib.request.urlopen(f"{url}/v1/completions", body, timeout=30) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] > 0
        for path, words in (("/", b"<h1>kdexport</h1>"), ("/site/page.js", b"import")):
            with urllib.request.urlopen(url + path, timeout=30) as answer:
                assert words in answer.read()
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode == 0
    test_the_laptop_has_none_of_the_heavy_libraries(laptop)
