"""Proofs of what a distillation reads and writes: tokens, texts, the files of its weights."""

from collections.abc import Callable, Iterator, Sequence

from safetensors import safe_open

from kdexport.train.case import Case, Proof
from kdexport.train.model import save_model
from kdexport.train.proofs import read_alone


def tokens_are_the_same(case: Case) -> Iterator[Proof]:
    """Each of the student's tokens is the teacher's, and logits are as wide on both sides."""
    if case.across:
        return
    theirs = range(len(case.student_tokens)) if case.kept_ids is None else case.kept_ids
    asked = {i: case.teacher_tokens.get(their) for i, their in enumerate(theirs)}
    other = sum(asked.get(i) != token for i, token in case.student_tokens.items())
    note = f"of {len(case.student_tokens)} tokens"
    yield Proof("the tokens are the teacher's, one by one", other, 0, note)
    z_teacher, z_student, _ = read_alone(case, case.examples[0])
    apart = abs(z_teacher.shape[-1] - z_student.shape[-1])
    yield Proof("logits are as wide on both sides", apart, 0, "columns more or fewer")


def every_example_has_targets(case: Case) -> Iterator[Proof]:
    """A text without a token to learn would divide by nothing."""
    without = sum(e.n_completion <= 0 or e.first_target < 1 for e in case.examples)
    yield Proof("every text has a token to learn", without, 0, f"of {len(case.examples)} texts")


def tied_weights_are_written_once(case: Case) -> Iterator[Proof]:
    """The file of weights has the bytes of the weights, each counted once."""
    folder = case.folder / "written"
    save_model(case.student, folder, tokenizer_from=case.tokenizer_from)
    on_disk = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_tensor(name)
                on_disk += tensor.numel() * tensor.element_size()
    unique = {
        t.data_ptr(): t.numel() * t.element_size() for t in case.student.state_dict().values()
    }
    apart = abs(on_disk - sum(unique.values()))
    yield Proof("weights are written once", apart, 0, f"bytes off {sum(unique.values()):,}")


def splits_are_disjoint(case: Case) -> Iterator[Proof]:
    """No text that quality is measured on was trained on."""
    trained = {_plain(text) for text in case.splits.get("train", ())}
    for split in ("validation", "test"):
        texts = case.splits.get(split, ())
        both = sum(_plain(text) in trained for text in texts)
        yield Proof(f"{split} texts are not trained on", both, 0, f"of {len(texts)} texts")


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


ON_FILES: Sequence[Callable[[Case], Iterator[Proof]]] = (
    tokens_are_the_same,
    every_example_has_targets,
    tied_weights_are_written_once,
    splits_are_disjoint,
)
