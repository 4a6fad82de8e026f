"""What optimum-onnx traces runs as what mobius-onnx builds does: in every scheme, by our runtime.

Tiny models of random weights. Torch is the reference; the bundles are then run where neither torch
of this environment nor optimum is.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from optimum.onnxruntime import ORTModelForCausalLM

from kdexport.bundle import Bundle, open_bundle
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.draft import load_draft
from kdexport.export.parity import mean_kl, token_by_token
from kdexport.export.quantize import SCHEMES, quantize_bundle
from kdexport.runtime.generate import generate, generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import load_text
from tests.models import SMALL, byte_level_bpe, make_gpt2, make_llama, save_tokenizer

ROOT = Path(__file__).parents[2]
PROMPT = "Fresh bread from our oven"
N_NEW = 16
LENGTHS = (5, 31, 12)
ATOL = 1e-4  # float32 in another order of summing, of logits that reach 10
MAX_KL = {"int8": 0.02, "int8-portable": 0.02, "int8-block": 0.02, "int4": 0.5}
"""Nats to the float32 bundle, some times what was seen; real weights round better."""
Array = np.ndarray[Any, Any]


def family(kind: str, **own: Any) -> Callable[[Path], Path]:
    """A random model of a family of transformers, its biases and norms shaken."""

    def make(folder: Path) -> Path:
        tokenizer = byte_level_bpe()
        sizes = SMALL | {"vocab_size": tokenizer.get_vocab_size(), **own}
        sizes.pop("rms_norm_eps")
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**sizes)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        save_tokenizer(folder, tokenizer)
        return folder

    return make


MAKE: Mapping[str, Callable[[Path], Path]] = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "stablelm": family("StableLm"),  # rotates 4 of 16 channels, which fused attention cannot
    "falcon": family("Falcon", alibi=True, new_decoder_architecture=False, bias=True),
}
SETS = [(name, scheme) for name in MAKE for scheme in SCHEMES]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("optimum")


@pytest.fixture(scope="session")
def bundles(folder: Path) -> Mapping[str, Bundle]:
    found = {}
    for name, make in MAKE.items():
        checkpoint = make(folder / name)
        parent = export_bundle(checkpoint, folder / f"{name}-fp32", name=name, backend="optimum")
        found[f"{name}-fp32"] = parent
        for scheme in SCHEMES:
            key = f"{name}-{scheme}"
            found[key] = quantize_bundle(parent, scheme, folder / key)
    return found


def rows(vocab_size: int) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.integers(3, vocab_size, length, dtype=np.int64) for length in LENGTHS]


def teacher(folder: Path, name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder / name).eval()


def logits_of(model: Any, ids: Array) -> Array:
    with torch.no_grad():
        found: Array = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    return found


def read_batch(session: Session, texts: list[Array], capacity: int) -> tuple[Any, Array]:
    lengths = np.asarray([len(text) for text in texts], dtype=np.int32)
    ids = np.zeros((len(texts), lengths.max()), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    cache = session.new_cache(len(texts), capacity)
    return cache, session.run(ids, cache, lengths=lengths).copy()


@pytest.mark.parametrize("name", MAKE)
def test_parity_holds_and_is_in_the_manifest(bundles: Mapping[str, Bundle], name: str) -> None:
    manifest = bundles[f"{name}-fp32"].manifest
    assert manifest.parity is not None
    assert manifest.parity.max_abs_logit_diff < ATOL and manifest.parity.max_kl < 1e-8
    assert "optimum-onnx" in manifest.versions and "mobius-onnx" not in manifest.versions


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon"])
def test_a_tied_head_and_the_embedding_are_one_table(
    bundles: Mapping[str, Bundle], name: str
) -> None:
    bundle = bundles[f"{name}-fp32"]
    draft = load_draft(bundle.file(bundle.manifest.graphs.decode))
    head = draft.writer("logits")
    (look_up,) = (node for node in draft.readers("input_ids") if node.op_type == "Gather")
    assert head is not None and head.op_type == "MatMul"
    assert head.input[1] == look_up.input[0]


@pytest.mark.parametrize("name", MAKE)
def test_rows_of_a_batch_are_as_alone(
    bundles: Mapping[str, Bundle], folder: Path, name: str
) -> None:
    """Read together, cut, kept, read on in pieces, with buffers that have to grow: as in torch."""
    session, model = open_session(bundles[f"{name}-fp32"], n_threads=1), teacher(folder, name)
    texts = rows(session.vocab_size)
    cache, found = read_batch(session, texts, 4)
    expected = [logits_of(model, text)[-1] for text in texts]
    np.testing.assert_allclose(found, expected, atol=ATOL)
    cache.truncate([4, 20, 12])
    cache.keep_rows([2, 0, 1, 0])
    texts = [texts[2], texts[0][:4], texts[1][:20], texts[0][:4]]
    further = [texts[0][:3], texts[2][5:6], texts[2][:2], texts[1][:3]]
    ids = np.zeros((4, 3), dtype=np.int64)
    for row, new in enumerate(further):
        ids[row, : len(new)] = new
    lengths = np.asarray([len(new) for new in further], dtype=np.int32)
    found = session.run(ids, cache, lengths=lengths).copy()
    texts = [np.concatenate(pair) for pair in zip(texts, further, strict=True)]
    expected = [logits_of(model, text)[-1] for text in texts]
    np.testing.assert_allclose(found, expected, atol=ATOL)
    found = session.run(ids[:, :1], cache)
    expected = [
        logits_of(model, np.append(text, ids[row, 0]))[-1] for row, text in enumerate(texts)
    ]
    np.testing.assert_allclose(found, expected, atol=ATOL)


@pytest.mark.parametrize("name", MAKE)
def test_padding_is_not_written_beyond_the_longest_text(
    bundles: Mapping[str, Bundle], folder: Path, name: str
) -> None:
    """A row at its model's very end, beside one that reads more tokens than it has room for."""
    session, model = open_session(bundles[f"{name}-fp32"], n_threads=1), teacher(folder, name)
    longest = session.manifest.model.max_length
    rng = np.random.default_rng(2)
    texts = [rng.integers(3, session.vocab_size, n, dtype=np.int64) for n in (longest - 1, 3)]
    cache, _ = read_batch(session, texts, 4)
    new = rng.integers(3, session.vocab_size, (2, 6), dtype=np.int64)
    found = session.run(new, cache, lengths=np.asarray([1, 6], dtype=np.int32))
    whole = [np.append(texts[0], new[0, 0]), np.concatenate([texts[1], new[1]])]
    np.testing.assert_allclose(found, [logits_of(model, text)[-1] for text in whole], atol=ATOL)


@pytest.mark.parametrize("name", MAKE)
def test_a_text_is_torchs_greedy_one(
    bundles: Mapping[str, Bundle], folder: Path, name: str
) -> None:
    bundle = bundles[f"{name}-fp32"]
    session, codec, model = open_session(bundle), load_text(bundle), teacher(folder, name)
    ids = codec.encode(PROMPT)
    with torch.no_grad():
        asked = torch.tensor([ids])
        mask = torch.ones_like(asked)
        made = model.generate(
            asked, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False, pad_token_id=2
        )
    steps = generate(session, ids, make_sampler(temperature=0), max_new_tokens=N_NEW)
    assert [step.token_id for step in steps] == made[0, len(ids) :].tolist()


@pytest.mark.parametrize(("name", "scheme"), SETS)
def test_a_scheme_stays_near(bundles: Mapping[str, Bundle], name: str, scheme: str) -> None:
    """Prompt, single tokens and batch; every product is quantized, and the embedding shared."""
    whole = open_session(bundles[f"{name}-fp32"], n_threads=1)
    bundle = bundles[f"{name}-{scheme}"]
    session = open_session(bundle, n_threads=1)
    texts = rows(whole.vocab_size)
    expected = whole.score(texts[1].tolist()).copy()
    found = session.score(texts[1].tolist()).copy()
    single = token_by_token(session, texts[1])
    batch = read_batch(whole, texts, 64)[1], read_batch(session, texts, 64)[1]
    for one, other in ((expected, found), (expected, single), batch):
        assert 0 < mean_kl(one, other) < MAX_KL[scheme]
    assert bundle.n_bytes < 0.75 * bundles[f"{name}-fp32"].n_bytes


@pytest.mark.parametrize(("name", "scheme"), [*SETS, *((name, "fp32") for name in MAKE)])
def test_the_standard_graph_opens_elsewhere(
    bundles: Mapping[str, Bundle], name: str, scheme: str
) -> None:
    """ORTModelForCausalLM reads a batch padded on the left as our runtime reads its rows."""
    bundle = bundles[f"{name}-{scheme}"]
    session = open_session(bundle, n_threads=1)
    model = ORTModelForCausalLM.from_pretrained(bundle.path)
    texts = rows(session.vocab_size)
    longest = max(LENGTHS)
    ids, mask = (torch.full((3, longest), fill) for fill in (2, 0))
    for row, text in enumerate(texts):
        ids[row, longest - len(text) :] = torch.from_numpy(text)
        mask[row, longest - len(text) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, text in enumerate(texts):
        expected = session.score(text.tolist())
        difference = np.abs(found[row, longest - len(text) :].detach().numpy() - expected)
        assert difference.max() < (ATOL if scheme == "fp32" else 0.3)  # rows round otherwise


PLAIN = ROOT / ".venv/bin/kdexport"


@pytest.mark.parametrize(("name", "scheme"), [("llama", "fp32"), ("stablelm", "int8-portable")])
def test_a_bundle_runs_where_there_is_no_optimum(
    bundles: Mapping[str, Bundle], name: str, scheme: str
) -> None:
    bundle = bundles[f"{name}-{scheme}"]
    asked = ["generate", str(bundle.path), "--prompt", PROMPT, "--raw", "--json", "-n", str(N_NEW)]
    ran = subprocess.run(
        [PLAIN, *asked], capture_output=True, text=True, env=os.environ, check=False
    )
    assert ran.returncode == 0, ran.stderr
    codec, session = load_text(bundle), open_session(bundle)
    steps = generate(
        session, codec.encode(PROMPT), make_sampler(temperature=0), max_new_tokens=N_NEW
    )
    expected = codec.decode([step.token_id for step in steps])
    assert json.loads(ran.stdout)["text"].strip() == expected.strip()


@pytest.mark.parametrize("name", MAKE)
def test_prompts_are_written_on_together_as_apart(bundles: Mapping[str, Bundle], name: str) -> None:
    session = open_session(bundles[f"{name}-fp32"], n_threads=1)
    prompts = [text.tolist() for text in rows(session.vocab_size)]
    greedy = make_sampler(temperature=0)
    together = generate_batch(session, prompts, greedy, max_new_tokens=[N_NEW] * 3)
    for prompt, found in zip(prompts, together, strict=True):
        steps = generate(session, prompt, greedy, max_new_tokens=N_NEW)
        assert found.ids == [step.token_id for step in steps if step.in_text]


NEWER = ("gpt2", "llama-linear", "qwen3-yarn", "phi4")
EXPORT = """
import sys
from pathlib import Path
from kdexport.export.bundles import export_bundle
from tests.models import make_family
for name in sys.argv[2:]:
    folder = Path(sys.argv[1])
    checkpoint = make_family(folder / name, name)
    if name != "gemma3":
        export_bundle(checkpoint, folder / f"{name}-mobius", name=name)
"""


@pytest.fixture(scope="session")
def newer(folder: Path) -> Path:
    """Checkpoints of the transformers beside mobius-onnx, and what mobius-onnx makes of them."""
    command = [ROOT / ".venv/bin/python", "-c", EXPORT, str(folder / "newer"), *NEWER, "gemma3"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder / "newer"


@pytest.mark.parametrize("name", NEWER)
def test_a_checkpoint_of_newer_transformers_is_the_same_model(newer: Path, name: str) -> None:
    """Here transformers knows rope_parameters as little as the class of the tokenizer."""
    config = newer / name / "config.json"
    before = config.read_bytes()
    theirs = open_session(newer / f"{name}-mobius", n_threads=1)
    bundle = export_bundle(newer / name, newer / f"{name}-here", name=name, backend="optimum")
    session = open_session(bundle, n_threads=1)
    for text in rows(session.vocab_size):
        ids = text.tolist()
        np.testing.assert_allclose(session.score(ids), theirs.score(ids), atol=ATOL)
    assert config.read_bytes() == before


def test_rotations_without_an_older_name_are_refused(newer: Path) -> None:
    with pytest.raises(InputError, match="their full_attention has no name") as told:
        export_bundle(newer / "gemma3", newer / "refused", name="x", backend="optimum")
    assert told.value.where == str(newer / "gemma3")


def test_what_optimum_does_not_know_is_refused_in_a_line(tmp_path: Path) -> None:
    checkpoint = family("Persimmon")(tmp_path / "m")
    with pytest.raises(InputError, match="persimmon models cannot be exported: unknown to optimum"):
        export_bundle(checkpoint, tmp_path / "b", name="x", backend="optimum")
    assert not (tmp_path / "b").exists()


def test_a_bundle_opens_again(bundles: Mapping[str, Bundle]) -> None:
    for bundle in bundles.values():
        assert open_bundle(bundle.path).manifest == bundle.manifest
