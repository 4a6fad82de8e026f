"""Make a student: each way is a row of `INITS`. How is cut: `depth`, `width`, `residual`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.depth import block_influence, cut_depth, most_influential
from kdexport.train.fresh import check_projected, check_scratch, from_scratch, projected
from kdexport.train.residual import cut_stream, most_important_channels
from kdexport.train.sizes import (
    StudentSpec,
    configured_width,
    has_own_head_size,
    size_names,
)
from kdexport.train.width import cut_width, most_important, n_key_value_heads


@dataclass(frozen=True)
class Student:
    """A new student and how it came about. ``kept_layers``: the teacher's layers in it, or None."""

    model: Any
    kept_layers: list[int] | None
    influence: list[float] | None


@dataclass(frozen=True)
class Origin:
    """What a student is made from.

    ``model``: the teacher, or the checkpoint that takes its place. ``kept_ids``: the student's
    tokens as its ids, or None for all. ``texts``: its token ids, int64 [1, L] each, on which
    importance is measured.
    """

    model: Any
    kept_ids: Sequence[int] | None
    texts: Sequence[torch.Tensor]


def prune(origin: Origin, spec: StudentSpec) -> Student:
    """Keep of the teacher what matters most: layers, feed-forward channels, heads, tokens.

    First and last layer always stay.
    """
    teacher, kept_ids, texts = origin.model, origin.kept_ids, origin.texts
    check_pruning(teacher.config, spec)
    influence = block_influence(teacher, texts)
    n_layers = len(influence) if spec.n_layers is None else spec.n_layers
    kept_layers = most_influential(influence, n_layers)
    n_groups = groups_kept(teacher.config, spec)
    model = cut_depth(teacher, kept_layers, kept_ids if spec.hidden_size is None else None)
    if spec.intermediate_size is not None or n_groups is not None:
        kept = most_important(teacher, spec.intermediate_size, n_groups, texts)
        model = cut_width(model, [kept[number] for number in kept_layers])
    if spec.hidden_size is not None:  # measured on texts that a trimmed vocabulary has not
        channels = most_important_channels(teacher, spec.hidden_size, texts)
        model = cut_stream(model, channels, texts)
        model = model if kept_ids is None else cut_depth(model, range(n_layers), kept_ids)
    return Student(model, kept_layers, influence)


def groups_kept(config: Any, spec: StudentSpec) -> int | None:
    """Key-value heads that are kept, each with its query heads; None where all are.

    Raises InputError for numbers of heads that leave no whole groups.
    """
    n_heads = getattr(config, size_names(config)["n_heads"] or "")
    n_groups = n_key_value_heads(config)
    per_group = n_heads // n_groups
    wanted = spec.n_kv_heads
    if wanted is None and spec.n_heads is not None and spec.n_heads % per_group == 0:
        wanted = spec.n_heads // per_group
    if spec.n_heads is not None and spec.n_heads != (wanted or 0) * per_group:
        raise InputError(
            f"{spec.n_heads} heads are no whole groups: the teacher has {per_group} to each of its "
            f"{n_groups} key-value heads",
            where="student.n_heads",
            remedy=f"use a multiple of {per_group}, and n_kv_heads of n_heads / {per_group}",
        )
    if wanted is not None and not 1 <= wanted <= n_groups:
        raise InputError(
            f"{wanted} key-value heads asked of a teacher that has {n_groups}",
            where="student.n_kv_heads" if spec.n_kv_heads else "student.n_heads",
            remedy=f"use 1 to {n_groups}",
        )
    return None if wanted == n_groups else wanted


def check_pruning(config: Any, spec: StudentSpec) -> None:
    """Refuse sizes that cannot be cut from a teacher of this configuration."""
    n_layers, width = config.num_hidden_layers, configured_width(config)
    if spec.n_layers is not None and not 2 <= spec.n_layers <= n_layers:
        raise InputError(
            f"{spec.n_layers} layers asked of a teacher that has {n_layers}",
            where="student.n_layers",
            remedy=f"use 2 to {n_layers}",
        )
    if spec.intermediate_size is not None and not 0 < spec.intermediate_size <= width:
        raise InputError(
            f"{spec.intermediate_size} asked of a teacher that has {width}",
            where="student.intermediate_size",
            remedy=f"use 1 to {width}",
        )
    hidden = int(getattr(config, size_names(config)["hidden_size"] or ""))
    if spec.hidden_size is not None and not 0 < spec.hidden_size <= hidden:
        raise InputError(
            f"{spec.hidden_size} channels asked of a teacher that has {hidden}",
            where="student.hidden_size",
            remedy=f"use 1 to {hidden}",
        )
    narrower = groups_kept(config, spec) is not None or spec.hidden_size not in (None, hidden)
    if narrower and not has_own_head_size(config):
        raise InputError(
            f"heads of {config.model_type} models are hidden_size / n_heads wide: neither can go",
            where="student.n_heads" if spec.hidden_size is None else "student.hidden_size",
            remedy="cut layers, intermediate_size or vocab_size",
        )


def scratch(origin: Origin, spec: StudentSpec) -> Student:
    """A randomly initialised model of the teacher's family with other sizes."""
    return Student(from_scratch(origin.model, spec, origin.kept_ids), None, None)


def narrower(origin: Origin, spec: StudentSpec) -> Student:
    """The same, with the teacher's embeddings projected to its width."""
    return Student(projected(origin.model, spec, origin.kept_ids), None, None)


def taken_over(origin: Origin, spec: StudentSpec) -> Student:
    """A checkpoint of whatever shape, with the rows of the student's tokens only."""
    layers = range(origin.model.config.num_hidden_layers)
    return Student(cut_depth(origin.model, layers, origin.kept_ids), None, None)


@dataclass(frozen=True)
class Init:
    """A way to make a student. ``check`` refuses impossible sizes before any work is done."""

    make: Callable[[Origin, StudentSpec], Student]
    check: Callable[[Any, StudentSpec], None] = lambda config, spec: None


INITS: Mapping[str, Init] = {
    "prune": Init(prune, check_pruning),
    "scratch": Init(scratch, check_scratch),
    "projected": Init(narrower, check_projected),
    "checkpoint": Init(taken_over),
}
