"""Models of the teacher's family with other sizes: random, or with the teacher's embeddings."""

from collections.abc import Sequence
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.sizes import StudentSpec, new_model, resized_config, size_names


def from_scratch(teacher: Any, spec: StudentSpec, kept_ids: Sequence[int] | None) -> Any:
    """A randomly initialised model of the teacher's family with other sizes."""
    return new_model(resized_config(teacher.config, spec, kept_ids), teacher, kept_ids)


def check_scratch(config: Any, spec: StudentSpec) -> None:
    """Refuse sizes that no model of this family can have."""
    resized_config(config, spec, None)


@torch.no_grad()
def projected(teacher: Any, spec: StudentSpec, kept_ids: Sequence[int] | None) -> Any:
    """A narrower model whose embeddings are the teacher's, projected; the rest is random.

    Of the kept rows, the mean is taken away and the principal axes are kept: no table of that width
    is nearer in its differences between tokens (Eckart & Young 1936), and a head's softmax sees
    nothing but those. So a tied head shares the outcome. A head of its own has axes of its own;
    positions go through the embedding's. Raises InputError as `check_projected`.
    """
    check_projected(teacher.config, spec)
    student = from_scratch(teacher, spec, kept_ids)
    rows = slice(None) if kept_ids is None else torch.as_tensor(kept_ids)
    embedding, head = teacher.get_input_embeddings(), teacher.get_output_embeddings()
    new_embedding, new_head = student.get_input_embeddings(), student.get_output_embeddings()
    table = embedding.weight[rows]
    axes = principal_axes(table, new_embedding.weight.shape[1])
    new_embedding.weight.copy_((table - table.mean(0)) @ axes)
    if head is not None and head.weight is not embedding.weight:
        own = head.weight[rows]
        own_axes = principal_axes(own, new_head.weight.shape[1])
        new_head.weight.copy_((own - own.mean(0)) @ own_axes)
    others = dict(student.named_modules())
    for name, module in teacher.named_modules():
        if isinstance(module, torch.nn.Embedding) and module is not embedding:
            others[name].weight.copy_(module.weight @ axes)
    return student


def principal_axes(table: torch.Tensor, width: int) -> torch.Tensor:
    """The ``width`` principal axes of a table's rows, float32 [columns, width], turned at random.

    Turned, since the first ones hold most: a few channels would be far larger than the others,
    which neither a norm nor a scale of eight bits likes.
    """
    rows = (table - table.mean(0)).double()
    axes = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -width:]
    turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64)).Q
    turned: torch.Tensor = (axes @ turn).float()
    return turned


def check_projected(config: Any, spec: StudentSpec) -> None:
    """Refuse a width that is not below the teacher's, and what no model can have."""
    width = getattr(config, size_names(config)["hidden_size"] or "")
    if spec.hidden_size is None or spec.hidden_size > width:
        raise InputError(
            f"embeddings of {width} cannot be projected to {spec.hidden_size or 'no width'}",
            where="student.hidden_size",
            remedy=f"use at most {width}, or init: scratch",
        )
    check_scratch(config, spec)
