"""A teacher whose tokenizer is not the student's: the run's texts in both, paired, and who asks.

How tokens are paired is told in `train.uld`; here are the texts, and which of them are left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdexport.data.pairs import by_split, load_pairs
from kdexport.errors import InputError
from kdexport.pipeline.run import Run
from kdexport.pipeline.service import Asked, Service
from kdexport.pipeline.splits import Splits, encode_splits
from kdexport.system.console import muted, say
from kdexport.train.data import Encoded
from kdexport.train.uld import paired_targets, pairs_of


def ask_across_tokens(
    run: Run, service: Service, tokenizers: tuple[Any, Any], data: Splits
) -> tuple[Splits, Asked]:
    """Training pairs that the teacher can read too, and targets for them; none for held-out ones.

    ``tokenizers``: teacher's and student's. What the student is judged by is its perplexity: a KL
    wants one vocabulary. Raises InputError where nothing is left.
    """
    if run.recipe.train.texts_alone:
        return data, Asked(None, None, 0.0)
    with muted():
        of_teacher = encode_splits(run, tokenizers[0], service.teacher)
    asked = {example.example_id: example for example in of_teacher.train}
    both = [example for example in data.train if example.example_id in asked]
    _tell_left_out(data.train, both)
    theirs, own = (tokenizer.backend_tokenizer for tokenizer in tokenizers)
    plain = {pair.id for pair in by_split(load_pairs(run.pairs), "train") if not pair.messages}
    pairs = pairs_of(both, asked, theirs, own, plain)
    n_paired = sum(int((pair.partners >= 0).sum()) for pair in pairs.values())
    n_tokens = sum(example.n_completion for example in both)
    say(
        f"    {100 * n_paired / n_tokens:.0f} % of the student's tokens begin where one of the "
        "teacher's does"
    )
    whole, seconds = service.of_own_texts([pair.teacher for pair in pairs.values()])
    return replace(data, train=both), Asked(paired_targets(whole, pairs), None, seconds)


def _tell_left_out(before: Sequence[Encoded], after: Sequence[Encoded]) -> None:
    if not after:
        raise InputError(
            "no training pair fits in the teacher's tokens too", where="train.max_length"
        )
    n_lost = len(before) - len(after)
    if n_lost:
        say(f"    {n_lost} train pairs left out: too long in the teacher's tokens")
