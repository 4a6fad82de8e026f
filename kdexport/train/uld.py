"""A teacher of another vocabulary, asked at the tokens that begin where the student's do.

Universal logit distillation (Boizard et al. 2024, arXiv 2402.12030, section 3): distributions over
different vocabularies are compared by their sorted probabilities. The paper pairs the t-th token of
one with the t-th of the other and cuts the longer text. Here two tokens are a pair where both begin
at the same character of the completion: both models have then read the same words. Knows tokenizers
and batches; not who is asked. The loss itself is a row of `losses`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.targets import TargetRows, Targets, in_order
from kdexport.train.teacher import TargetFn

NO_PARTNER = -1


@dataclass(frozen=True)
class Paired:
    """An example in the teacher's tokens, and which of them are compared.

    ``partners``: for each of the student's completion tokens the number of the teacher's completion
    token that begins at the same character, int64 [n_completion], or `NO_PARTNER`.
    """

    teacher: Encoded
    partners: np.ndarray


def pairs_of(
    students: Sequence[Encoded],
    teachers: Mapping[str, Encoded],
    teacher_tokens: Any,
    student_tokens: Any,
    plain: Collection[str] = (),
) -> dict[str, Paired]:
    """The completion tokens of texts in two vocabularies in pairs, given both tokenizers.

    ``plain``: ids of texts without a prompt, whose first token is no target, and text all the same.
    """
    found: dict[str, Paired] = {}
    for student in students:
        teacher = teachers[student.example_id]
        is_plain = student.example_id in plain
        own = _before_targets(student, student_tokens, is_plain)
        others = _before_targets(teacher, teacher_tokens, is_plain)
        number = {text: n for n, text in reversed(list(enumerate(others))) if text is not None}
        partners = [NO_PARTNER if text is None else number.get(text, NO_PARTNER) for text in own]
        asked = replace(teacher, first_target=teacher.first_completion)
        found[student.example_id] = Paired(asked, np.asarray(partners, dtype=np.int64))
    return found


def _before_targets(example: Encoded, tokenizer: Any, is_plain: bool) -> list[str | None]:
    first = example.first_completion
    if is_plain:
        return text_before(example.ids, tokenizer)[first:]
    return text_before(example.ids[first:], tokenizer)


def text_before(ids: Sequence[int] | np.ndarray, tokenizer: Any) -> list[str | None]:
    """What the tokens before each token spell; None where it begins within a character.

    ``tokenizer`` is one of the library tokenizers. What the tokens before spell must be a beginning
    of what all spell together.
    """
    tokens = [int(i) for i in ids]
    every = [*(tokens[:n] for n in range(len(tokens))), tokens]
    *parts, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in every)
    return [part if whole.startswith(part) else None for part in parts]


@dataclass(frozen=True)
class PairedTargets:
    """A teacher's distributions over its own vocabulary, a row for each of the student's targets.

    ``found``: N rows, of which those that ``has_partner``, bool [N], does not name mean nothing.
    """

    found: TargetRows
    has_partner: torch.Tensor

    @property
    def hidden(self) -> torch.Tensor | None:
        """None: states of another vocabulary are not compared."""
        return None

    def rows(self, rows: slice) -> Targets:
        """The distributions of some of the tokens; of those without a partner, no mass at all."""
        alone = ~self.has_partner[rows, None]
        return Targets(self.found.rows(rows).logprobs.masked_fill(alone, -torch.inf))

    def to(self, device: torch.device) -> "PairedTargets":
        """The same on another device."""
        return replace(self, found=self.found.to(device), has_partner=self.has_partner.to(device))


def paired_targets(ask_teacher: TargetFn, pairs: Mapping[str, Paired]) -> TargetFn:
    """Targets of the student's texts from those of the teacher's texts.

    ``ask_teacher``: whole distributions, live or kept. ``pairs``: by the examples' ids.
    """

    def ask(batch: Batch) -> PairedTargets:
        of_batch = [pairs[example.example_id] for example in batch.examples]
        found = ask_teacher(collate([one.teacher for one in of_batch]))
        numbers: list[np.ndarray] = []
        begin = 0
        for example, one in zip(batch.examples, of_batch, strict=True):
            numbers.append(np.full(example.n_targets - example.n_completion, NO_PARTNER))
            numbers.append(np.where(one.partners < 0, NO_PARTNER, one.partners + begin))
            begin += one.teacher.n_targets
        chosen = torch.from_numpy(np.concatenate(numbers))
        return PairedTargets(in_order(found, chosen.clamp(min=0)), chosen >= 0)

    return ask
