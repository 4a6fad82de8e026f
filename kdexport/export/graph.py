"""A Hugging Face folder becomes a fused graph, through mobius-onnx.

mobius-onnx is young, so nothing else imports it; `parity` checks every graph that comes from here.
"""

import contextlib
import io
import json
import logging
import tempfile
from pathlib import Path

from kdexport.errors import InputError, MissingExtraError, first_words, full_disk
from kdexport.export.draft import Draft, load_draft
from kdexport.export.passes import PASSES


def build_graph(checkpoint: Path) -> Draft:
    """The model's graph under the contract of docs/architecture.md, float32.

    Raises InputError for a model type that mobius-onnx does not know.
    """
    try:
        import mobius
        from mobius.__main__ import main as mobius_main
    except ImportError:
        raise MissingExtraError("mobius-onnx", "export") from None
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    kind = config.get("model_type")
    if kind not in mobius.registry:
        raise InputError(
            f"{kind} models cannot be exported: unknown to mobius-onnx {mobius.__version__}",
            where=str(checkpoint),
        )
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        arguments = ["build", "--config", str(checkpoint), "--ep", "cpu", folder]
        try:
            with _silence():
                mobius_main(arguments)
        except Exception as error:  # what a young builder raises for a model it half knows
            raise full_disk(error, folder) or InputError(
                f"{kind} models cannot be exported: mobius-onnx {mobius.__version__} fails "
                f"({first_words(error)})",
                where=str(checkpoint),
            ) from error
        draft = load_draft(Path(folder) / "model.onnx")
    for rewrite in PASSES:
        rewrite(draft)
        draft.remove_unused()
    return draft


@contextlib.contextmanager
def _silence():  # type: ignore[no-untyped-def]
    """Without the builder's own bars and lines."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
