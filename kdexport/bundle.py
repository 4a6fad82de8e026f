"""A bundle: one folder with graphs, weights, tokenizer and a manifest that vouches for every byte.

Knows files and hashes; nothing of models, and it opens no graph.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdexport.errors import InputError, full_disk
from kdexport.system.machine import make_folder, need_room

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
REFERENCE = "reference.npz"  # the teacher's distribution, to measure quality without it
ORIGIN = "origin.json"  # how its model came to be, in words, where that is known
CARD = "README.md"  # written after the rest, and for people: no hash vouches for it
LEDGER = "ledger.json"  # of a mix of kernels: what each product got, and is expected to cost
WEIGHTS = "onnx/model.onnx_data"
Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
KVType = Literal["float32", "int8"]
"""Of the keys and values that a text has in memory while it is written: a name of numpy."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


F = TypeVar("F", bound=_Facts)


class Graphs(_Facts):
    """File names; equal when one graph serves both. ``decode`` is the quicker at one token of one
    text, ``prefill`` at many tokens at once (of a prompt, or of a batch) where the CPU has AMX. In
    format 1, ``decode`` is right for one token of one text only.

    ``standard``: the graph for other tools, over the same weights; None in format 1.
    """

    prefill: str
    decode: str
    standard: str | None = None


class ModelFacts(_Facts):
    """Sizes that the runtime needs; ``max_length`` in tokens, prompt and continuation together."""

    family: str
    n_parameters: Count
    n_layers: Count
    n_kv_heads: Count
    head_dim: Count
    hidden_size: Count
    vocab_size: Count
    max_length: Count


class TextFacts(_Facts):
    """Special tokens. ``add_bos``: the model wants the token before every text."""

    bos_token_id: TokenId | None = None
    eos_token_ids: list[TokenId] = []
    add_bos: bool = False
    bos_token: str | None = None
    eos_token: str | None = None


class Parent(_Facts):
    """The bundle that this one was made from."""

    name: str
    manifest_sha256: str


class Parity(_Facts):
    """How far the graph was from what it was made from, when it was made; KL in nats."""

    max_abs_logit_diff: float
    max_kl: float
    n_tokens: int


class CpuFacts(_Facts):
    """The CPU that the kernels were chosen for, and the kernels (the vocabulary head's aside).

    ``made_on``: a class of `kdexport.runtime.cpu`. ``kernels``: "rows8" (signed weights), "rows8u"
    (unsigned), "block8", "block4".
    """

    made_on: str
    kernels: list[str]


class FileFacts(_Facts):
    """What the manifest vouches for."""

    sha256: str
    bytes: int


class Manifest(_Facts):
    """All facts of a bundle. Nothing is read from paths or file names.

    ``self_sha256``: of the manifest's own bytes with this value left out. ``prefill_kv_cache``: of
    `Graphs.prefill`, where that is a graph of its own.
    """

    format_version: int = FORMAT_VERSION
    name: str
    scheme: str
    kv_cache: KVType = "float32"
    prefill_kv_cache: KVType | None = None
    created: str = ""
    graphs: Graphs
    weights: str = WEIGHTS
    model: ModelFacts
    text: TextFacts
    versions: dict[str, str] = {}
    recipe_fingerprint: str | None = None
    teacher: str | None = None
    parent: Parent | None = None
    parity: Parity | None = None
    licence: str | None = None
    requires_cpu: list[str] = []
    cpu: CpuFacts | None = None
    files: dict[str, FileFacts] = {}
    self_sha256: str = ""

    def of_graph(self, name: str) -> "Manifest":
        """The manifest with the cache of one of its graphs as the cache."""
        if name == self.graphs.decode or self.prefill_kv_cache is None:
            return self
        return self.model_copy(update={"kv_cache": self.prefill_kv_cache})

    @property
    def token_bytes(self) -> int:
        """Bytes that a token's keys and values take in memory."""
        model = self.model
        n_values = 2 * model.n_layers * model.n_kv_heads * model.head_dim
        return n_values * {"float32": 4, "int8": 1}[self.kv_cache]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it is and what its manifest says."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    @property
    def n_bytes(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(facts.bytes for facts in self.manifest.files.values())


def open_bundle(path: Path | str) -> Bundle:
    """Read the manifest, check its hash, and that all files are there with their sizes.

    Their hashes are checked where they are read: `check_files`.
    """
    path = Path(path)
    manifest_path = path / MANIFEST
    if not path.is_dir():
        raise InputError("there is no such bundle", where=str(path))
    if not manifest_path.is_file():
        raise InputError(f"is no bundle: {MANIFEST} is missing", where=str(path))
    content = manifest_path.read_bytes()
    manifest = _parse(content, manifest_path)
    problem = _manifest_problem(content, manifest)
    if problem:
        raise InputError(problem, where=str(path), remedy="copy or export the bundle again")
    listed = {*model_files(manifest), "tokenizer.json"}
    for name in sorted(listed - manifest.files.keys()):
        raise InputError(f"the manifest does not list {name}", where=str(manifest_path))
    for name, facts in manifest.files.items():
        problem = _file_problem(path, name, facts)
        if problem:
            raise InputError(problem, where=str(path), remedy="copy or export the bundle again")
    return Bundle(path, manifest, hashlib.sha256(content).hexdigest())


def _parse(content: bytes, where: Path) -> Manifest:
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        fields = None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if type(version) is not int or version < 1:  # a bool is an int, too
        raise InputError("is no manifest of a bundle", where=str(where))
    if version > FORMAT_VERSION:
        raise InputError(
            f"format version {version} is newer than {FORMAT_VERSION}, the newest known here",
            where=str(where),
            remedy="upgrade kdexport",
        )
    return make_facts(Manifest, fields, where)


def make_facts(kind: type[F], fields: Mapping[str, Any], where: Path) -> F:
    """Facts that somebody else wrote; InputError with the first that cannot be."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{field}: {first['msg']}", where=str(where)) from None


def _manifest_problem(content: bytes, manifest: Manifest) -> str | None:
    """Why a manifest's own bytes cannot be trusted."""
    if manifest.self_sha256 == _own_sha256(content, manifest.self_sha256):
        return None
    if not manifest.self_sha256:
        return f"{MANIFEST} has no sha256 of its own: it was made before bundles were released"
    return f"{MANIFEST} has changed: its sha256 differs"


def _own_sha256(content: bytes, stated: str) -> str:
    """The sha256 of a manifest's bytes without the one that is stated in them."""
    return hashlib.sha256(content.replace(stated.encode(), b"")).hexdigest()


def model_files(manifest: Manifest) -> set[str]:
    """The names of a bundle's graphs and weights."""
    graphs = manifest.graphs
    return {graphs.prefill, graphs.decode, manifest.weights} | set(filter(None, [graphs.standard]))


def weights_location(graph: str, weights: str) -> str:
    """How a graph names the file of its weights: seen from the graph's own folder.

    Raises InputError where that would lead out of the folder.
    """
    folder = graph.rpartition("/")[0]
    if folder and not weights.startswith(f"{folder}/"):
        raise InputError(f"{weights} lies neither beside nor below {graph}")
    return weights[len(folder) + 1 :] if folder else weights


def served_bytes(sizes: Mapping[str, int]) -> int:
    """Bytes of what a bundle needs to run, from the sizes of its files by name."""
    return sum(n_bytes for name, n_bytes in sizes.items() if name not in (REFERENCE, ORIGIN, CARD))


def copy_companions(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle's files into another's folder, all but its graphs and weights."""
    for name in bundle.manifest.files.keys() - model_files(bundle.manifest):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(name), folder / name)


def _file_problem(folder: Path, name: str, facts: FileFacts) -> str | None:
    """Why a listed file cannot be used, apart from its hash."""
    parts = name.split("/")
    if tuple(parts) != Path(name).parts or ".." in parts or "\\" in name:
        return f"{name!r} is no plain file name"
    file = folder / name
    linked = any((folder / Path(*parts[:n])).is_symlink() for n in range(1, len(parts) + 1))
    if linked or not file.is_file():
        return f"{name} is missing or no plain file"
    size = file.stat().st_size
    return None if size == facts.bytes else f"{name} has {size} bytes in place of {facts.bytes}"


def verify_bundle(path: Path) -> list[str]:
    """Every changed, missing or unexpected file, one line each; empty when the bundle is whole."""
    if not (path / MANIFEST).is_file():
        raise InputError(f"is no bundle: {MANIFEST} is missing", where=str(path))
    content = (path / MANIFEST).read_bytes()
    manifest = _parse(content, path / MANIFEST)
    own = _manifest_problem(content, manifest)
    problems = [own] if own else []
    for name, facts in manifest.files.items():
        problem = _file_problem(path, name, facts)
        if problem is None and _sha256(path / name) != facts.sha256:
            problem = f"{name} has changed: its sha256 differs"
        if problem:
            problems.append(problem)
    strangers = _strangers(path, {MANIFEST, CARD, *manifest.files})
    return problems + [f"{name} is not listed" for name in strangers]


def _strangers(folder: Path, known: set[str], inside: str = "") -> Iterator[str]:
    """What lies in a bundle's folder and is none of its files, or has the name of one."""
    for path in sorted(folder.iterdir()):
        name = inside + path.name
        real_folder = path.is_dir() and not path.is_symlink()
        if real_folder and any(other.startswith(f"{name}/") for other in known):
            yield from _strangers(path, known, f"{name}/")
        elif name not in known or real_folder:
            yield name


def check_files(bundle: Bundle, names: set[str]) -> None:
    """Raise InputError unless the named files are, byte for byte, what the manifest vouches for."""
    for name in sorted(names):
        if _sha256(bundle.file(name)) != bundle.manifest.files[name].sha256:
            raise InputError(
                f"{name} has changed: its sha256 differs",
                where=str(bundle.path),
                remedy="copy or export the bundle again",
            )


def check_target(target: Path) -> None:
    """Refuse a place for a bundle that holds anything but an older bundle's own files.

    The older one may be damaged; it may not be of a newer format.
    """
    another = "name another folder"
    if target.name in ("", ".."):
        raise InputError("cannot be replaced by a bundle", where=str(target), remedy=another)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError("is no folder", where=str(target), remedy=another)
    if not target.exists() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise InputError("is a folder with other things in it", where=str(target), remedy=another)
    try:
        manifest = _parse((target / MANIFEST).read_bytes(), target / MANIFEST)
    except InputError as error:
        remedy = " or ".join(filter(None, (error.remedy, another)))
        raise InputError(error.message, where=error.where, remedy=remedy) from None
    for name in _strangers(target, {MANIFEST, CARD, *manifest.files}):
        raise InputError(
            f"{name} lies in the bundle there and is no part of it",
            where=str(target),
            remedy=f"move it away or {another}",
        )


@contextlib.contextmanager
def staged_bundle(target: Path, n_bytes: int = 0) -> Iterator[Path]:
    """A folder beside ``target`` to write into; `commit_bundle` swaps it in.

    What was not committed is removed, and an older bundle at ``target`` is untouched.
    Raises InputError, before anything is written, where ``target`` may not be replaced or its disk
    has no room for ``n_bytes``.
    """
    check_target(target)
    make_folder(target.parent)
    need_room(target.parent, n_bytes)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    try:
        yield staging
    except OSError as error:
        raise full_disk(error, str(target)) or error from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def commit_bundle(staging: Path, target: Path, manifest: Manifest) -> Bundle:
    """Hash all files, write the manifest, flush to disk and rename into place."""
    files = {}
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
        name = file.relative_to(staging).as_posix()
        files[name] = FileFacts(sha256=_sha256(file), bytes=file.stat().st_size)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    created = datetime.now(UTC).isoformat(timespec="seconds")
    whole = manifest.model_copy(update={"files": files, "created": created, "self_sha256": ""})
    own = _own_sha256(_manifest_bytes(whole), "")
    with (staging / MANIFEST).open("wb") as handle:
        handle.write(_manifest_bytes(whole.model_copy(update={"self_sha256": own})))
        handle.flush()
        os.fsync(handle.fileno())
    check_target(target)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return open_bundle(target)


def _manifest_bytes(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
