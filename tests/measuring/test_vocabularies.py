"""A teacher is known by its tokens: ids say nothing, nor does how many there are."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from kdexport.bundle import Bundle, TextFacts
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.measuring.vocabularies import check_teacher, kept_ids
from kdexport.runtime.text import TextCodec
from tests.models import make_llama
from tests.shuffled import own_reference


def words(folder: Path, name: str, *tokens: str) -> TextCodec:
    """A codec of these tokens."""
    (folder / name).mkdir()
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, tokens[0]))
    tokenizer.save(str(folder / name / "tokenizer.json"))
    return TextCodec(folder / name / "tokenizer.json", TextFacts(eos_token_ids=[0]), None)


def test_a_trimmed_vocabulary_finds_its_tokens_in_the_teacher_s(tmp_path: Path) -> None:
    teacher = words(tmp_path, "teacher", "end", "tea", "bread", "oven", "hill")
    student = words(tmp_path, "student", "end", "oven", "bread")
    found = kept_ids(student, teacher)
    assert found is not None
    assert found.tolist() == [0, 3, 2]
    assert kept_ids(teacher, teacher) is None
    with pytest.raises(InputError, match=r"student: its token 'soap' is not the teacher's"):
        kept_ids(words(tmp_path, "other-student", "end", "soap"), teacher)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("vocabularies")
    return export_bundle(make_llama(folder / "model"), folder / "tiny", name="tiny")


def renumbered(bundle: Bundle, folder: Path, ids: list[int]) -> Path:
    """A folder with the bundle's tokenizer, its tokens under other ids."""
    spec = json.loads((bundle.path / "tokenizer.json").read_text("utf-8"))
    vocab = spec["model"]["vocab"]
    spec["model"]["vocab"] = {token: ids[number] for token, number in vocab.items()}
    for added in spec["added_tokens"]:
        added["id"] = ids[added["id"]]
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def test_the_teacher_of_a_reference_is_known_by_its_tokens(bundle: Bundle, tmp_path: Path) -> None:
    reference = own_reference(bundle, tmp_path / "r.npz")
    check_teacher(bundle.path.with_name("model"), bundle, reference)
    two_exchanged = [*range(40), 41, 40, *range(42, 320)]
    for other in (
        make_llama(tmp_path / "fewer", vocab_size=300),
        renumbered(bundle, tmp_path / "exchanged", two_exchanged),
    ):
        with pytest.raises(
            InputError, match=r"is not the teacher of .*tiny: their token"
        ) as caught:
            check_teacher(other, bundle, reference)
        assert caught.value.where == str(other) and "\n" not in str(caught.value)


def test_a_reference_says_under_which_ids_its_teacher_knows_the_tokens(
    bundle: Bundle, tmp_path: Path
) -> None:
    reference = own_reference(bundle, tmp_path / "r.npz")
    with np.load(reference) as file:
        arrays = dict(file)
    backwards = [*reversed(range(320))]
    np.savez(reference, **(arrays | {"kept_ids": np.asarray(backwards, dtype=np.int32)}))
    check_teacher(renumbered(bundle, tmp_path / "backwards", backwards), bundle, reference)
    with pytest.raises(InputError, match="is not the teacher"):
        check_teacher(bundle.path.with_name("model"), bundle, reference)
