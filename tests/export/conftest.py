from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.export.calibrate import Observed, calibration_texts, observe
from kdexport.export.draft import Draft, load_draft
from kdexport.runtime.text import load_text
from tests.models import make_family, make_gpt2, make_llama

Seen = tuple[Draft, dict[str, Observed]]


@pytest.fixture(scope="session", autouse=True)
def texts_are_written_once() -> Iterator[None]:
    """What a model writes to be observed on depends on nothing but the model."""
    from kdexport.export import quantize

    written: dict[str, list[np.ndarray]] = {}
    write = quantize.written_texts

    def once(bundle: Bundle, *rest: Any) -> list[np.ndarray]:
        name = bundle.manifest_sha256
        if name not in written:
            written[name] = write(bundle, *rest)
        return list(written[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "written_texts", once)
        yield


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "llama": make_llama(folder / "llama"),
        "llama-untied": make_llama(folder / "untied", tied=False),
        "gpt2": make_gpt2(folder / "gpt2"),
    }


@pytest.fixture(scope="session")
def parents(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """Float32 bundles; two of models whose norms and biases do not stand at ones and zeros."""
    from kdexport.export.bundles import export_bundle

    folder = tmp_path_factory.mktemp("parents")
    varied = {f"{name}-varied": name for name in ("gemma3", "gpt2")}
    sources = checkpoints | {k: make_family(folder / f"{k}-model", n) for k, n in varied.items()}
    return {name: export_bundle(path, folder / name, name=name) for name, path in sources.items()}


@pytest.fixture(scope="session")
def quantized(
    parents: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Bundle]:
    """A family in a scheme and by wishes, quantized once."""
    from kdexport.export.quantize import Wishes, quantize_bundle

    root, kept = tmp_path_factory.mktemp("quantized"), dict[tuple[str, str, Wishes], Bundle]()

    none = Wishes()

    def made(family: str, scheme: str, wishes: Wishes = none) -> Bundle:
        asked = (family, scheme, wishes)
        if asked not in kept:
            kept[asked] = quantize_bundle(parents[family], scheme, root / str(len(kept)), wishes)
        return kept[asked]

    return made


@pytest.fixture(scope="session")
def texts(parents: dict[str, Bundle]) -> list[np.ndarray]:
    """Three of the built-in page's texts in the tokens that all tiny models share."""
    bundle = parents["llama"]
    return calibration_texts(bundle, load_text(bundle), None)[:3]


@pytest.fixture(scope="session")
def seen(parents: dict[str, Bundle], texts: list[np.ndarray]) -> dict[str, Seen]:
    """Each parent's draft and what is observed of it; both are to be left as they are."""
    drafts = {n: load_draft(b.file(b.manifest.graphs.decode)) for n, b in parents.items()}
    return {n: (d, observe(parents[n], d, texts)) for n, d in drafts.items()}
