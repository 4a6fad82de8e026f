"""kdexport beside PyTorch, optimum, onnxruntime-genai and llama.cpp, on one model and one machine.

    make peers && .venv/bin/python bench/peers.py --out bench/results/peers.json

One process an engine, taking turns in rounds; two threads, greedy, batch 1, tokenizing and sampling
inside the time. bench/README.md says what is measured and how to read it.
"""

import subprocess
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.peers.arguments import parse, settings_of, wanted_arms  # noqa: E402
from bench.peers.measure import Bench, Settings  # noqa: E402
from bench.peers.prepare import (  # noqa: E402
    PEERS,
    PINS,
    Shelf,
    bundle_entrant,
    peer_entrant,
    peer_options,
    scheme_entrant,
    torch_entrant,
)
from bench.peers.process import Entrant  # noqa: E402
from bench.peers.table import Verdict, table, verdicts  # noqa: E402
from bench.peers.text import PACKAGE, corpus_texts, cut_windows, fetch_corpus, file_texts  # noqa: E402
from bench.record import record, save  # noqa: E402
from kdexport.errors import KdexportError  # noqa: E402
from kdexport.system.console import say, tracked  # noqa: E402
from kdexport.system.machine import cache_folder  # noqa: E402

PINNED = ("torch", "transformers", "tokenizers", "onnx", "optimum", "gguf", "llama", "numpy")
BUSY = 0.05  # cores: with more than that in other programs, a run is not to be trusted


def entrant(shelf: Shelf, name: str, bundles: dict[str, Path]) -> Entrant:
    if name == "torch-fp32":
        return torch_entrant(shelf)
    if name in PEERS:
        return peer_entrant(shelf, name)
    if name in bundles:
        return bundle_entrant(name, bundles[name])
    return scheme_entrant(shelf, name)


def codec_of(folder: Path) -> Any:
    from kdexport.export.text import text_facts
    from kdexport.runtime.text import TextCodec
    from kdexport.train.model import load_config

    return TextCodec(folder / "tokenizer.json", text_facts(folder, load_config(folder)), None)


def reference_of(shelf: Shelf, codec: Any, settings: Settings, text: Path | None) -> Path:
    """The windows of text and the float32 logits of PyTorch, computed once."""
    if text is not None:
        texts = file_texts(text)
    else:
        texts = corpus_texts(shelf.kept("corpus", [PACKAGE], fetch_corpus))
    # Never fewer than the full number: a quick run reads the first of the same.
    n_windows = max(settings.n_windows, Settings.n_windows)
    windows = cut_windows(texts, codec, n_windows, settings.n_window_tokens)

    def make(out: Path) -> None:
        from bench.peers.torch_fp32 import keep_logits

        keep_logits(shelf.model.path, windows, out)

    return shelf.kept("reference", [windows.tobytes().hex()], make)


def git_state() -> dict[str, Any]:
    def ask(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": ask("rev-parse", "HEAD"), "changed_files": len(changed.splitlines())}


def pinned_versions() -> dict[str, list[str]]:
    return {
        path.stem: [line for line in path.read_text("utf-8").split() if line.startswith(PINNED)]
        for path in sorted(PINS.glob("*.txt"))
    }


def report(bench: Bench, source: str, given: Namespace, held: list[Verdict]) -> Any:
    for name in bench.facts.keys() & PEERS.keys():
        bench.facts[name]["made_by"] = peer_options(name)
    return {
        **record(__file__),
        "model": source,
        "text": str(given.text or PACKAGE),
        "tree": git_state(),
        "peer_versions": pinned_versions(),
        "settings": asdict(bench.settings),
        "busy_with_others": asdict(bench.watch),
        "arms": {n: {**bench.facts[n], **values} for n, values in bench.series.items()},
        "bars": [{"bar": v.line, "met": v.met, "limit": v.limit, "values": v.values} for v in held],
    }


def main(words: list[str]) -> None:
    from kdexport.model_folder import check_safetensors
    from kdexport.recipe import load_recipe
    from kdexport.sources import resolve_teacher

    given = parse(words)
    settings = settings_of(given)
    names, bundles = wanted_arms(given)
    source = given.model or load_recipe(ROOT / "recipes" / "quickstart.yaml").teacher.source
    model = resolve_teacher(source)
    shelf = Shelf(cache_folder() / "peers", model)
    entrants = [entrant(shelf, name, bundles) for name in names]
    codec = codec_of(model.path)
    from kdexport.runtime.latency import prompt_of

    lengths = (settings.n_prompt, settings.n_long, settings.n_deep)
    prompts = {n: prompt_of(codec, n) for n in lengths}
    reference = reference_of(shelf, codec, settings, given.text) if settings.n_windows else None
    with tracked("peers", "turns") as progress:
        bench = Bench(entrants, settings, prompts, progress)
        bench.run(reference)
    n_parameters = sum(check_safetensors(part) for part in model.path.glob("*.safetensors"))
    for values in bench.series.values():
        values["bytes_per_parameter"] = [1e6 * values["size_mb"][0] / n_parameters]
    held = verdicts(bench.series, [e.name for e in entrants if e.ours])
    print("\n".join([*table(bench.series), "", *(verdict.line for verdict in held)]))
    if bench.watch.strangers > BUSY:
        say(f"other programs used {bench.watch.strangers:.2f} cores meanwhile: run it again")
    save(report(bench, source, given, held), given.out)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KdexportError as error:
        print(f"bench/peers.py: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
