"""A Hugging Face folder becomes a traced graph, through optimum-onnx: the understudy of `graph`.

For families that mobius-onnx does not build. optimum-onnx traces what torch computes, in operators
of ONNX alone, so that nothing is fused; passes put it under the same contract. Nothing else imports
it; `parity` checks every graph that comes from here.
"""

import contextlib
import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdexport.errors import InputError, KdexportError, first_words, full_disk
from kdexport.export.companions import FROM_TOKENIZER_JSON
from kdexport.export.draft import Draft, load_draft
from kdexport.export.graph import check_weights, link, named, silence
from kdexport.export.layers import check_decoder
from kdexport.export.passes.cache_in_place import cache_in_place
from kdexport.export.passes.one_product import one_product
from kdexport.export.passes.one_table import one_table
from kdexport.export.passes.plain_weights import plain_weights
from kdexport.export.passes.selected_logits import selected_logits
from kdexport.model_folder import read_config

OPSET = 18  # whose reductions take their axes as inputs, as our kernels write them
ROTATION = ("rope_theta", "partial_rotary_factor")  # transformers 5 has them in rope_parameters
TASK = "text-generation-with-past"
PASSES: Sequence[Callable[[Draft], None]] = (
    plain_weights,
    one_table,
    one_product,
    cache_in_place,
    selected_logits,
)


def build_graph(checkpoint: Path) -> Draft:
    """The model's graph under the contract of docs/architecture.md, float32.

    Raises InputError as `check_family` does, for weights that are quantized already or not finite,
    and for what optimum-onnx fails at.
    """
    from kdexport.train.model import load_config

    check_family(checkpoint)
    config = load_config(checkpoint)
    check_weights(checkpoint, config)
    with named(checkpoint, config):
        draft = _traced(checkpoint)
        for rewrite in PASSES:
            rewrite(draft)
            draft.remove_unused()
    return draft


def check_family(checkpoint: Path) -> None:
    """Refuse by its name a model type that cannot be exported; asks no more than the configuration.

    Raises InputError where optimum-onnx is not installed, for what is no decoder of text with
    attention in every layer, or that optimum-onnx does not know.
    """
    from kdexport.train.model import load_config

    version = _version()
    config = load_config(checkpoint)
    with named(checkpoint, config):
        check_decoder(config)
        if config.model_type not in _known_types():
            raise InputError(f"unknown to optimum-onnx {version}")


@contextlib.contextmanager
def readable(checkpoint: Path) -> Iterator[Path]:
    """For the time of the block, a checkpoint as the transformers that optimum-onnx wants reads it.

    Later ones write rotations and the tokenizer's class by other names, of which the first are
    passed over without a word. Raises InputError where optimum-onnx is not installed, and for
    rotations that have no older name.
    """
    _version()  # what transformers is beside it matters only where it is
    rewritten = _older_names(checkpoint)
    if not rewritten:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        link(checkpoint, Path(folder), rewritten)
        try:
            yield Path(folder)
        except KdexportError as error:
            error.where = error.where.replace(folder, str(checkpoint))
            raise


def _version() -> str:
    try:
        return importlib.metadata.version("optimum-onnx")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "optimum-onnx is missing",
            where="--backend optimum",
            remedy="pip install 'kdexport[optimum]' in an environment of its own, and export there",
        ) from None


def _older_names(checkpoint: Path) -> dict[str, object]:
    """The JSON files of a checkpoint that have to be written anew, by their names."""
    rewritten: dict[str, object] = {}
    path = checkpoint / "config.json"
    config = read_config(path)
    if config.get("rope_parameters"):
        with named(checkpoint, SimpleNamespace(model_type=config.get("model_type"))):
            rewritten[path.name] = _older_rotation(config)
    path = checkpoint / "tokenizer_config.json"
    tokenizer = read_config(path) if path.exists() else {}
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        rewritten[path.name] = tokenizer | {"tokenizer_class": FROM_TOKENIZER_JSON}
    return rewritten


def _older_rotation(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose rotations are said as transformers 4 does."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return config
    scaling = dict(config["rope_parameters"])
    own = {name: scaling.pop(name) for name in ROTATION if name in scaling}
    older = {name: value for name, value in config.items() if name != "rope_parameters"} | own
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    known = CONFIG_MAPPING[kind]().to_dict().keys() | config.keys()
    unsaid = sorted(older.keys() - known) if own else sorted(scaling)
    if unsaid:
        raise InputError(f"their {unsaid[0]} has no name in the transformers beside optimum-onnx")
    return older


def _known_types() -> Sequence[str]:
    import optimum.exporters.onnx.model_configs  # noqa: F401 (which registers what it knows)
    from optimum.exporters.tasks import TasksManager

    known = TasksManager.get_supported_model_type_for_task(TASK, "onnx")
    return [str(name).replace("-", "_") for name in known]


def _traced(checkpoint: Path) -> Draft:
    """What optimum-onnx makes of a checkpoint."""
    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        try:
            with silence(), _no_warnings():
                _export(checkpoint, folder)
        except Exception as error:  # what tracing raises for a model that it cannot follow
            raise full_disk(error, folder) or InputError(
                f"optimum-onnx fails ({first_words(error)})"
            ) from error
        draft = load_draft(Path(folder) / "model.onnx")
    draft.graph.name = "model"
    return draft


def _export(checkpoint: Path, folder: str) -> None:
    from optimum.exporters.onnx import main_export

    asked: dict[str, Any] = {"task": TASK, "opset": OPSET, "do_validation": False}
    main_export(str(checkpoint), folder, local_files_only=True, **asked)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Without those of tracing: parity tells whether a branch that it took for good was one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
