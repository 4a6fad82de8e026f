"""What the entrants run, made once and kept in the cache: exports, quantized files, the reference.

All begin with one Hugging Face folder in float32.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.peers.process import OFFLINE, ROOT, Entrant
from bench.peers.text import PACKAGE, calibration_text, fetch_corpus
from kdexport.bundle import open_bundle
from kdexport.errors import InputError, KdexportError
from kdexport.sources import ResolvedModel
from kdexport.system.console import say
from kdexport.system.machine import machine_facts

CALIBRATED = "-calibrated"  # after a scheme's name: with texts of the corpus

PINS = ROOT / "bench" / "peers"
ENVIRONMENTS = ROOT / ".peers"
NOT_TO_RUN = ("reference.npz", "README.md")


@dataclass(frozen=True)
class Shelf:
    """A folder of prepared things. A thing's key says all that it was made from."""

    folder: Path
    model: ResolvedModel

    def kept(self, name: str, key: Sequence[str], make: Callable[[Path], object]) -> Path:
        """The folder of a thing, made if its key is new; made beside and renamed."""
        text = json.dumps([self.model.fingerprint, *key])
        target = self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if target.is_dir():
            return target
        say(f"preparing {name} (once)")
        staging = self.folder / f".{name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        make(staging)
        for old in self.folder.iterdir():
            if re.fullmatch(re.escape(name) + "-[0-9a-f]{16}", old.name):
                shutil.rmtree(old)
        return staging.rename(target)


@dataclass(frozen=True)
class Peer:
    """A row of `PEERS`: its environment, the module that runs it, and how its files are made."""

    environment: str
    module: str
    make: Callable[[Shelf, str], Path]

    @property
    def python(self) -> Path:
        """Its environment's Python."""
        return ENVIRONMENTS / self.environment / "bin" / "python"

    @property
    def installed(self) -> bool:
        """Whether `make peers` has finished with it."""
        return (ENVIRONMENTS / self.environment / ".installed").exists()


def _pins(environment: str) -> str:
    return (PINS / f"{environment}.txt").read_text("utf-8")


def _run(environment: str, *command: object) -> None:
    """A command of a peer's environment, quietly; its last words where it fails."""
    folder = ENVIRONMENTS / environment / "bin"
    words = [str(folder / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(
        words, cwd=ROOT, env={"PATH": f"{folder}:/usr/bin:/bin", **OFFLINE},
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise KdexportError(f"{command[0]} failed: {last}", where=f".peers/{environment}")


def plain_folder(shelf: Shelf) -> Path:
    """The model's folder as every version of transformers reads it.

    transformers 4 knows no ``rope_parameters`` and would quietly rotate by its default base.
    """

    def make(out: Path) -> None:
        for file in shelf.model.path.iterdir():
            if file.suffix in (".json", ".jinja"):
                shutil.copyfile(file, out / file.name)
            elif file.suffix == ".safetensors":
                (out / file.name).symlink_to(file.resolve())
        config = json.loads((out / "config.json").read_text("utf-8"))
        rope = dict(config.get("rope_parameters") or {})
        base = rope.pop("rope_theta", config.get("rope_theta"))
        scaled = rope if rope.get("rope_type", "default") != "default" else None
        config |= {"rope_theta": base, "rope_scaling": scaled, "torch_dtype": "float32"}
        (out / "config.json").write_text(json.dumps(config), "utf-8")
        tokenizer = json.loads((out / "tokenizer_config.json").read_text("utf-8"))
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        (out / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")

    return shelf.kept("plain", ["1"], make)


def optimum_flag() -> str:
    """The target that optimum-cli has for this CPU."""
    features = machine_facts().features
    flags = {"vnni": "--avx512_vnni", "avx512": "--avx512", "neon": "--arm64"}
    if "avx512" not in features:
        flags.pop("vnni")  # there is AVX-VNNI without AVX512, too
    return next((flag for name, flag in flags.items() if name in features), "--avx2")


def _optimum(shelf: Shelf, name: str) -> Path:
    flag = optimum_flag()

    def make(out: Path) -> None:
        full, folder = out / "fp32", plain_folder(shelf)
        task = ("--task", "text-generation-with-past")
        _run("optimum", "optimum-cli", "export", "onnx", "--model", folder, *task, full)
        quantize = ("optimum-cli", "onnxruntime", "quantize")
        _run("optimum", *quantize, "--onnx_model", full, flag, "-o", out / "model")
        shutil.rmtree(full)

    return shelf.kept(name, [_pins("optimum"), flag], make) / "model"


GENAI_OPTIONS: Mapping[str, Sequence[str]] = {
    "int8": ["accuracy_level=4", "block_size=32"],
    "int4": ["accuracy_level=4", "block_size=32", "algo_config=k_quant_mixed"],
}


def _genai(shelf: Shelf, name: str) -> Path:
    precision = name.rpartition("-")[2]
    options = GENAI_OPTIONS[precision]

    def make(out: Path) -> None:
        builder = ("python", "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision)
        places = ("-i", plain_folder(shelf), "-o", out / "model", "-c", out / "cache")
        _run("genai", *builder, *places, "--extra_options", *options)
        shutil.rmtree(out / "cache", ignore_errors=True)

    return shelf.kept(name, [_pins("genai"), *options], make) / "model"


def _gguf(shelf: Shelf, name: str) -> Path:
    source = next(shelf.model.path.parent.glob("*.gguf"), None)
    if source is None:
        raise InputError(
            "no GGUF file lies beside it to take the tokenizer from",
            where=str(shelf.model.path),
            remedy="take a teacher that came as GGUF, or leave llama.cpp out by --only",
        )
    code = (PINS / "gguf_files.py").read_text("utf-8")

    def make(out: Path) -> None:
        _run("llama", "python", "-m", "bench.peers.gguf_files", shelf.model.path, source, out)

    folder = shelf.kept("gguf", [_pins("llama"), code], make)
    return folder / f"{name.rpartition('-')[2]}.gguf"


PEERS: Mapping[str, Peer] = {
    "optimum-int8": Peer("optimum", "bench.peers.optimum_ort", _optimum),
    "genai-int8": Peer("genai", "bench.peers.genai", _genai),
    "genai-int4": Peer("genai", "bench.peers.genai", _genai),
    "llama-q8_0": Peer("llama", "bench.peers.llama_cpp", _gguf),
    "llama-q4_0": Peer("llama", "bench.peers.llama_cpp", _gguf),
}


def peer_options(name: str) -> str:
    """What a peer's files were made with."""
    precision = name.rpartition("-")[2]
    made = {
        "optimum": f"optimum-cli onnxruntime quantize {optimum_flag()}",
        "genai": f"builder -p {precision} {' '.join(GENAI_OPTIONS.get(precision, []))}",
        "llama": f"llama_model_quantize {precision.upper()} from float32, its defaults",
    }
    return made[PEERS[name].environment]


def peer_entrant(shelf: Shelf, name: str) -> Entrant:
    """A peer with its files made."""
    peer = PEERS[name]
    path = peer.make(shelf, name)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Entrant(name, peer.python, peer.module, path, files)


def torch_entrant(shelf: Shelf) -> Entrant:
    """The model in PyTorch, float32."""
    folder = shelf.model.path
    files = [file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")]
    return Entrant("torch-fp32", Path(sys.executable), "bench.peers.torch_fp32", folder, files)


def bundle_entrant(name: str, path: Path) -> Entrant:
    """A bundle of ours."""
    bundle = open_bundle(path)
    names = [file for file in bundle.manifest.files if file not in NOT_TO_RUN]
    files = [bundle.file(file) for file in names] + [path / "manifest.json"]
    return Entrant(name, Path(sys.executable), "bench.peers.ours", path, files, ours=True)


def scheme_entrant(shelf: Shelf, name: str) -> Entrant:
    """The model quantized by one of our schemes, ``SCHEME`` or ``SCHEME-calibrated``."""
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import Wishes, quantize_bundle

    code = _code_digest()
    scheme = name.removesuffix(CALIBRATED)

    def export(out: Path) -> Any:
        return export_bundle(shelf.model.path, out / "bundle", name="fp32")

    def quantize(out: Path) -> Any:
        full = open_bundle(shelf.kept("fp32", [code], export) / "bundle")
        wishes = Wishes()
        if name.endswith(CALIBRATED):
            corpus = shelf.kept("corpus", [PACKAGE], fetch_corpus)
            wishes = Wishes(calibrate=calibration_text(corpus, out))
        return quantize_bundle(full, scheme, out / "bundle", wishes)

    return bundle_entrant(name, shelf.kept(f"ours-{name}", [code, name], quantize) / "bundle")


@cache
def _code_digest() -> str:
    """sha256 of the code that makes bundles; once, so that all schemes are from one state of it."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "kdexport" / "export").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
