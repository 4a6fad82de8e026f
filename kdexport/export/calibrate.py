"""What the activations of a model look like on some texts: the input of every product, observed.

Runs the float32 graph in ONNX Runtime, with the observed values as further outputs. Knows no model
family, and nothing of what is done with the findings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from kdexport.bundle import Bundle
from kdexport.data.pairs import read_pairs
from kdexport.data.tables import format_of
from kdexport.errors import InputError
from kdexport.export.draft import Draft
from kdexport.runtime.generate import generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import check_ids, open_session, session_options
from kdexport.runtime.text import TextCodec
from kdexport.system.machine import physical_cores

Array = np.ndarray[Any, Any]
TEXT_TOKENS = 256  # of each calibration text
MOST_TEXTS = 32
MOST_PAIRS = 20_000  # of a file, its first ones, that the texts are spread over
FEWEST_TOKENS = 512
N_WRITTEN = 24  # texts that a model writes for itself
N_BEGINNING = 12  # tokens of each that it is given
N_SAMPLES = 64  # activations kept of each product, spread over the texts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Observed:
    """Activations X [tokens, K] that one product reads.

    ``largest``: max |x| of each channel, [K]; ``gram``: Xᵀ X, [K, K]; ``samples``: some rows of X.
    All float32.
    """

    largest: Array
    gram: Array
    samples: Array

    def scaled(self, scale: Array) -> "Observed":
        """What would be observed of X / scale."""
        gram = self.gram / np.outer(scale, scale)
        return Observed(self.largest / scale, gram, self.samples / scale)


def observe(
    bundle: Bundle, draft: Draft, texts: Sequence[Array], progress: Progress | None = None
) -> dict[str, Observed]:
    """Run a float32 bundle over texts (int64 [tokens] each); findings by the values' names.

    ``draft``: the bundle's graph, whose products are observed.
    """
    names = sorted({node.input[0] for node in draft.products()})
    session = _observing(bundle, names)
    largest: dict[str, Array] = {}
    gram: dict[str, Array] = {}
    samples: dict[str, list[Array]] = {name: [] for name in names}
    wanted = -(-N_SAMPLES // len(texts))
    for number, ids in enumerate(texts):
        for name, value in zip(names, session.run(names, feeds(bundle, session, ids)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            top = np.abs(rows).max(0)
            largest[name] = np.maximum(largest[name], top) if name in largest else top
            square = rows.T @ rows
            gram[name] = gram[name] + square if name in gram else square
            samples[name].append(rows[:: max(1, len(rows) // wanted)][:wanted].copy())
        if progress:
            progress(number + 1, len(texts))
    return {
        name: Observed(largest[name], gram[name], np.concatenate(samples[name])) for name in names
    }


def _observing(bundle: Bundle, names: Sequence[str]) -> Any:
    """The bundle's graph with further outputs; its weights stay where they are."""
    path = bundle.file(bundle.manifest.graphs.decode)
    model = onnx.load(path, load_external_data=False)
    made = {output.name for output in model.graph.output}
    for name in names:
        if name not in made:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return graph_session(model.SerializeToString(), path.parent)


def graph_session(model: bytes, folder: Path) -> Any:
    """An ONNX Runtime session of a graph that is no file; its weights' file lies in ``folder``."""
    import onnxruntime

    beside = {"session.model_external_initializers_file_folder_path": str(folder)}
    options = session_options(physical_cores(), beside)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(bundle: Bundle, session: Any, ids: Array) -> Mapping[str, Array]:
    """One text, read from its beginning, by the contract of docs/architecture.md."""
    model = bundle.manifest.model
    n_tokens = len(ids)
    feeds = {
        "input_ids": ids[None],
        "seqlens_k": np.asarray([n_tokens - 1], dtype=np.int32),
        "total_sequence_length": np.asarray([n_tokens], dtype=np.int32),
        "position_ids": np.arange(n_tokens, dtype=np.int64)[None],
        "logit_rows": np.arange(n_tokens, dtype=np.int64),
    }
    empty = np.zeros((1, model.n_kv_heads, n_tokens, model.head_dim), dtype=np.float32)
    wanted = {value.name for value in session.get_inputs()}
    feeds = {name: value for name, value in feeds.items() if name in wanted}
    feeds |= {name: empty for name in wanted if name.startswith("past_key_values.")}
    return feeds


def builtin_text() -> str:
    """A page of English of ours, for models that come without a text of their own."""
    return resources.files("kdexport.export").joinpath("calibration.txt").read_text("utf-8")


def calibration_texts(bundle: Bundle, codec: TextCodec, path: Path | None) -> list[Array]:
    """Token ids of the texts of a file, or of the built-in page; int64, each at most 256 long.

    ``path``: plain text, or pairs as `read_pairs` gives them, whose test split is left out. Too
    few of them are followed by the built-in page. Raises InputError for a file that is neither.
    """
    ids = codec.encode("\n\n".join(_texts(path, codec))) if path else []
    if len(ids) < FEWEST_TOKENS:
        ids += codec.encode(builtin_text())
    known = np.asarray(ids, dtype=np.int64)
    check_ids(known, bundle.manifest.model.vocab_size)
    length = min(TEXT_TOKENS, bundle.manifest.model.max_length)
    starts = range(0, max(len(known) - length // 2, 1), length)
    texts = [known[start : start + length] for start in starts]
    n = min(len(texts), MOST_TEXTS)
    return [texts[number * len(texts) // n] for number in range(n)]


def written_texts(
    bundle: Bundle, codec: TextCodec, progress: Progress | None = None
) -> list[Array]:
    """Texts that the model writes by itself, from the beginnings of the built-in page's.

    What a model writes is near to what it will read, in whatever language that is (data-free
    calibration: Liu et al. 2023, LLM-QAT, section 3.1). int64, at most 256 tokens each.
    """
    length = min(TEXT_TOKENS, bundle.manifest.model.max_length)
    beginnings = [codec.encode(text)[:N_BEGINNING] for text in builtin_text().split("\n\n")]
    beginnings = [ids[: length // 2] for ids in beginnings if ids][:N_WRITTEN]
    written = generate_batch(
        open_session(bundle),
        beginnings,
        make_sampler(temperature=1.0),
        max_new_tokens=[length - len(ids) for ids in beginnings],
        batch_size=N_WRITTEN // 2,
        on_done=lambda done: progress(done, len(beginnings)) if progress else None,
        ignore_eos=True,
    )
    return [
        np.asarray([*begin, *one.ids], dtype=np.int64)
        for begin, one in zip(beginnings, written, strict=True)
    ]


def _texts(path: Path, codec: TextCodec) -> Iterator[str]:
    if format_of(path):
        for pair in islice(read_pairs(path), MOST_PAIRS):
            if pair.split != "test":  # which is kept for measuring
                asked = codec.render_chat(pair.messages) if pair.messages else ""
                yield asked + pair.completion
        return
    try:
        yield path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
