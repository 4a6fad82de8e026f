"""Vectors of words from a package's files, without its code."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kdexport.errors import InputError
from kdexport.measuring import embedding
from kdexport.measuring.embedding import TOKENIZER, WEIGHTS, load_similarity

TABLE = np.asarray([[1, 0], [0, 2], [-3, 0]], dtype="<f2")


def package(folder: Path, dtype: str = "F16") -> None:
    """What the wheel holds, of three words."""
    for name in (TOKENIZER, WEIGHTS, "__init__.py"):
        (folder / "vectors" / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / "vectors" / "__init__.py").write_text("raise RuntimeError('its code was run')")
    words = Tokenizer(models.WordLevel({"bread": 0, "tea": 1, "stone": 2}, unk_token="tea"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "vectors" / TOKENIZER))
    facts = {"embedding.weight": {"dtype": dtype, "shape": [3, 2], "data_offsets": [0, 12]}}
    header = json.dumps(facts).encode()
    content = len(header).to_bytes(8, "little") + header + TABLE.tobytes()
    (folder / "vectors" / WEIGHTS).write_bytes(content)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedding, "PACKAGE", "vectors")
    return tmp_path


def test_similarity_is_the_cosine_of_mean_vectors(installed: Path) -> None:
    similarity = load_similarity()
    assert similarity is not None
    texts = ["bread", "bread", "bread", "bread tea", ""]
    others = ["bread bread", "tea", "stone", "bread", "bread"]
    # (1, 0) and (0, 2) have the mean (0.5, 1)
    expected = [1, 0, -1, 0.5 / np.hypot(0.5, 1), 0]
    assert similarity(texts, others) == pytest.approx(expected, abs=1e-6)


def test_other_files_are_one_line(installed: Path) -> None:
    package(installed, dtype="F32")
    with pytest.raises(InputError, match="no word vectors that are known"):
        load_similarity()
    (installed / "vectors" / TOKENIZER).unlink()
    with pytest.raises(InputError, match="no word vectors that are known"):
        load_similarity()


def test_without_the_package_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    assert load_similarity() is None


def test_the_package_s_own_vectors_know_bread() -> None:
    pytest.importorskip("wordllama")
    similarity = load_similarity()
    assert similarity is not None
    bread, rome = similarity(
        ["Fresh bread from our oven"] * 2, ["Warm loaves, newly baked", "Book a flight to Rome"]
    )
    assert bread > rome + 0.1
