"""docs/benchmarks.md from bench/results: each figure of it stands in the JSON file that it names.

make bench                            # measures the demo again first
.venv/bin/python bench/document.py    # only writes
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.exact_kl import lines as exact_kl_lines  # noqa: E402
from bench.passing import table as passing_table  # noqa: E402
from bench.passing import verdicts as passing_verdicts  # noqa: E402
from bench.peers.table import table as peers_table  # noqa: E402
from bench.quality.arms import read_result  # noqa: E402
from bench.quality.table import rows as quality_rows  # noqa: E402
from bench.quality.table import verdicts as quality_verdicts  # noqa: E402
from bench.repeatability import lines as repeatability_lines  # noqa: E402
from bench.stopwatch import lines as stopwatch_lines  # noqa: E402
from bench.train_speed import BARS_OF  # noqa: E402
from bench.train_speed import table as speed_table  # noqa: E402
from bench.train_speed import verdicts as speed_verdicts  # noqa: E402
from kdexport.verdict.cases import markdown_cases  # noqa: E402
from kdexport.verdict.report import BenchReport, summary  # noqa: E402
from kdexport.verdict.table import markdown_table  # noqa: E402

RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
HEAD = """\
# Benchmarks

Results of the programs in [bench](../bench/README.md), written by `bench/document.py` from the JSON
files that each section names; change those, not this page. What they mean, and what was tried, is
in [performance](performance.md) and [distillation](distillation.md).
"""
Lines = Iterator[str]
MUCH = 0.1  # of a core


def quickstart(found: Mapping[str, Any]) -> Lines:
    report = BenchReport.model_validate(found)
    yield from (summary(report), "", markdown_table(report).rstrip())
    if cases := markdown_cases(report).rstrip():
        yield from ("", cases)


def repeatability(found: Mapping[str, Any]) -> Lines:
    yield (
        f"`kdexport bench` {len(found['seconds'])} times. In brackets is where a bench says that "
        "another would find the ratio."
    )
    yield from ("", *repeatability_lines(found))


def stopwatch(found: Mapping[str, Any]) -> Lines:
    settings = found["settings"]
    yield (
        f"{settings['prompt']} tokens of prompt and {settings['new']} new ones on "
        f"{settings['threads']} threads; medians of {settings['texts']} texts a round."
    )
    yield from ("", *stopwatch_lines(found))


def peers(found: Mapping[str, Any]) -> Lines:
    settings = found["settings"]
    yield (
        f"{settings['n_prompt']} tokens of prompt and {settings['n_new']} new ones on "
        f"{settings['n_threads']} threads, {settings['n_rounds']} rounds in turns; median, range."
    )
    busy = found["busy_with_others"]["strangers"]
    if busy > MUCH:
        yield f"Other programs took {busy:.1f} cores' time meanwhile: the times here mean little."
    yield from ("", *peers_table(found["arms"]), "")
    yield from (f"- {bar['bar']}" for bar in found["bars"])


def quality(found: Mapping[str, Any]) -> Lines:
    results = {
        arm: {
            int(seed): read_result({**one, "tokens": found["tokens"]})
            for seed, one in by_seed.items()
        }
        for arm, by_seed in found["arms"].items()
    }
    budget = found["budget"]
    yield f"{budget['minutes']:g} minutes of CPU for each arm, {budget['n_threads']} threads."
    yield from ("", *quality_rows(results, found["base"]))
    if told := quality_verdicts(results, found["base"]):
        yield from ("", *(f"- {line}" for line in told))


def passing(found: Mapping[str, Any]) -> Lines:
    budget, data = found["budget"], found["data"]
    yield (
        f"{budget['minutes']:g} minutes of CPU for each student, {budget['n_threads']} threads, "
        f"{len(found['did']['raw'])} of each kind; {data['raw']['pairs']['train']:,} raw texts to "
        f"train on, {data['filtered']['pairs']['train']:,} filtered. Intervals: briefs drawn anew."
    )
    yield from ("", *passing_table(found), "")
    yield from (f"- {line}" for line in passing_verdicts(found))


def train_speed(found: Mapping[str, Any]) -> Lines:
    settings = found["settings"]
    n_rounds = len(next(iter(found["rounds"].values())))
    yield (
        f"{settings['texts']} texts in batches of {settings['batch_size']} on "
        f"{settings['threads']} threads; medians of {n_rounds} rounds."
    )
    yield from ("", *speed_table(found["medians"]), "")
    for other, parts in found["ratios"].items():
        if other in BARS_OF:  # these are told beside their bars
            continue
        told = (f"{name} {_range(values)}" for name, values in parts.items())
        yield f"- kdexport over {other}: {'; '.join(told)}"
    yield from (f"- {line}" for line in speed_verdicts(found["rounds"]))


def targets(found: Mapping[str, Any]) -> Lines:
    yield (
        f"{found['n_tokens']:,} tokens of {found['n_texts']} texts, a vocabulary of "
        f"{found['vocabulary']:,}; loss and gradient of an untrained student on "
        f"{found['n_gradient_tokens']:,} of them, beside those of the live teacher. KL is of the "
        "teacher to what is kept, a tail spread evenly; ∞ where tokens are missing."
    )
    yield from ("", "| kept | bytes a token | KL | total variation | loss | cosine | length |")
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, one in found["rows"].items():
        kl = "∞" if one["kl"] is None else f"{one['kl']:.4f}"
        yield (
            f"| {name} | {one['bytes_per_token']:,} | {kl} | {one['total_variation']:.4f} "
            f"| {100 * one['loss_bias']:+.1f} % | {one['gradient_cosine']:.4f} "
            f"| {one['gradient_length']:.3f} |"
        )
    for name, n_bytes in found["bytes_per_token_of_others"].items():
        yield f"| {name} | {n_bytes:,} | | | | | |"


def own_samples(found: Mapping[str, Any]) -> Lines:
    yield (
        f"A student of {found['student_parameters'] / 1e6:.1f} M parameters writes "
        f"{found['batch_size']} texts of {found['new_tokens']} tokens at once after "
        f"{found['prompt_tokens']} of prompt, on {found['threads']} threads."
    )
    yield from ("", "| | median (range) |", "|---|---:|")
    rows = {
        "PyTorch, tokens/s": "torch_tokens_per_s",
        "a bundle, tokens/s": "bundle_tokens_per_s",
        "its export, s": "export_s",
    }
    yield from (f"| {told} | {_range(found[key])} |" for told, key in rows.items())
    paid = [n for n in found["batches_until_an_export_is_paid"] if n is not None]
    told = f"{_range(paid)} batches" if paid else "never"
    yield from ("", f"- an export is paid after {told}")


def quantize_aware(found: Mapping[str, Any]) -> Lines:
    schemes = list(next(iter(found["kl"].values())))
    settings, won = found["settings"], found["won_back"]
    yield f"{settings['scheme']}, {settings['steps']} steps more at lr {settings['lr']:g}."
    yield from ("", f"| KL of | {' | '.join(schemes)} |", "|---|" + "---:|" * len(schemes))
    for way, kl in found["kl"].items():
        yield f"| {way} | {' | '.join(f'{kl[scheme]:.4f}' for scheme in schemes)} |"
    told = f"{won['value']:.2f} ({won['low']:.2f} to {won['high']:.2f})"
    yield from ("", f"- won back of what quantizing costs: {told}, bar ≥ {found['bar']:g}")


def huge_pages(found: Mapping[str, Any]) -> Lines:
    yield from ("| bundle | measure | huge pages over small ones |", "|---|---|---:|")
    for bundle, one in found["bundles"].items():
        for measure, ratio in one["huge / small"].items():
            told = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
            yield f"| {bundle} | {measure} | {told} |"


def serving(found: Mapping[str, Any]) -> Lines:
    n = found["clients"]
    yield (
        f"{found['prompt_tokens']} tokens of prompt and {found['new_tokens']} new ones for each "
        "client; the clients run on the same cores."
    )
    yield from (
        "",
        f"| round | one client, tok/s | {n} clients, tok/s | ratio |",
        "|---:|---:|---:|---:|",
    )
    rounds = zip(found["tok_s_one"], found["tok_s_all"], found["ratio"], strict=True)
    for number, (one, every, ratio) in enumerate(rounds):
        yield f"| {number + 1} | {one:.0f} | {every:.0f} | {ratio:.2f} |"
    typical, health, failed = (found[k] for k in ("ttft_ms_p50", "health_ms_p99", "n_not_200"))
    yield ""
    yield _bar(f"{n} clients / one, median", statistics.median(found["ratio"]), "≥ 3", 3)
    yield f"- /health p99 {health:.1f} ms, bar < 50: {'met' if health < 50 else 'NOT met'}"
    yield f"- answers other than 200: {failed}, bar 0: {'met' if not failed else 'NOT met'}"
    yield f"- first token, median: {typical:,.0f} ms"


def writing(found: Mapping[str, Any]) -> Lines:
    yield f"{found['n_briefs']:,} briefs, {found['candidates']} texts each; a slice of them a row."
    ways = ("together", "one after another", "each alone")
    yield ""
    yield f"| {' | '.join(f'{way}, texts/min' for way in ways)} | times the second | the third |"
    yield "|---:" * 5 + "|"
    for one in found["texts_a_minute"]:
        rates = " | ".join(f"{one[way]:,.0f}" for way in ways)
        yield f"| {rates} | {one[f'times {ways[1]}']:.2f} | {one[f'times {ways[2]}']:.2f} |"
    yield ""
    for way in ways[1:]:
        values = [one[f"times {way}"] for one in found["texts_a_minute"]]
        yield _bar(f"together / {way}, median", statistics.median(values), "≥ 3", 3)


def killed_writing(found: Mapping[str, Any]) -> Lines:
    whole = f"{found['n_briefs']:,} briefs, {found['candidates']} texts each"
    rate = f"{found['texts']:,} texts in {found['seconds']:,.0f} s"
    yield f"{whole}: {rate}, {found['copies_per_minute']:,.0f} a minute."
    done = found["journal_lines_at_kills"]
    yield ""
    yield f"- kills: {len(done)}, with {', '.join(f'{n:,}' for n in done)} lines in the journal"
    for name in ("rows_lost", "rows_doubled"):
        met = "NOT met" if found[name] else "met"
        yield f"- {name.replace('_', ' ')}: {found[name]}, bar 0: {met}"
    yield f"- the bytes of the unbroken table: {'met' if found['same_bytes'] else 'NOT met'}"


def _bar(name: str, value: float, bar: str, least: float) -> str:
    return f"- {name}: {value:.2f}, bar {bar}: {'met' if value >= least else 'NOT met'}"


def operators(found: Mapping[str, Any]) -> Lines:
    yield f"{found['scheme']}, {found['depth']} tokens deep, one token."
    yield from ("", "| operator | calls | ms |", "|---|---:|---:|")
    for name, one in found["operators"].items():
        yield f"| {name} | {one['calls']:.0f} | {one['ms']:.3f} |"


def steps(found: Mapping[str, Any]) -> Lines:
    names = list(found["steps"][0]["of"])
    yield "Milliseconds of CPU time, medians: a token for all rows, or a whole prompt."
    yield from ("", f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names))
    told = [(f"{s['rows']} rows, {s['depth']} tokens deep", s["of"]) for s in found["steps"]]
    told += [(f"a prompt of {p['tokens']}", p["of"]) for p in found["prompts"]]
    for what, of in told:
        values = " | ".join(f"{of[name]['cpu_ms']:.1f}" for name in names)
        yield f"| {what} | {values} |"


KINDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Lines]]] = {
    "quickstart": ("The quickstart, teacher to int8 student", quickstart),
    "repeatability": ("What a second bench says", repeatability),
    "stopwatch": ("The bench beside a stopwatch", stopwatch),
    "exact-kl": ("The KL of a reference beside PyTorch's", exact_kl_lines),
    "distill": ("Distillation for equal CPU minutes", quality),
    "ablations": ("Ablations of the quickstart's recipe", quality),
    "passing": ("Pass rates with reviewed texts and raw ones", passing),
    "writing": ("Copy in bulk", writing),
    "killed-writing": ("Copy in bulk, killed and gone on with", killed_writing),
    "serving": ("Many clients beside one", serving),
    "train-speed": ("Speed of training", train_speed),
    "targets": ("What is kept of a teacher: bytes against fidelity", targets),
    "own-samples": ("Own samples from PyTorch and from a bundle", own_samples),
    "quantize-aware": ("Training with rounded weights", quantize_aware),
    "peers": ("Engines that run the same model", peers),
    "huge-pages": ("Weights in huge pages", huge_pages),
    "operators": ("Where a token's time goes", operators),
    "steps": ("Steps of a batch, by graph and by what keeps keys and values", steps),
}
"""What a file's name begins with -> the section's heading, and its lines from the file."""


def sections(files: Sequence[Path]) -> Lines:
    """A section a file, in the order of `KINDS`; a file of no kind is an error."""
    kinds = {file: _kind(file) for file in files}
    for kind, (heading, lines) in KINDS.items():
        for file in (file for file in files if kinds[file] == kind):
            found = json.loads(file.read_text("utf-8"))
            more = file.stem.removeprefix(kind).strip("-")
            yield from ("", f"## {heading}{f': {more}' if more else ''}", "")
            yield from (_source(file, found), "", *lines(found))


def _kind(file: Path) -> str:
    try:
        return max((kind for kind in KINDS if file.stem.startswith(kind)), key=len)
    except ValueError:
        raise SystemExit(f"{file}: document.py knows no such results") from None


def _source(file: Path, found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    command = found.get("command", "")
    told = command if isinstance(command, str) else " ".join(command)
    parts = [
        f"[{file.name}](../bench/results/{file.name})",
        f"{machine['cpu']}, {machine['n_cores']} cores ({', '.join(machine['features'])})",
        found.get("created", "")[:10],
        f"`{told}`" if told else "",
    ]
    return f"{'; '.join(filter(None, parts))}."


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def document() -> str:
    """The page as it should be."""
    lines = sections(sorted(RESULTS.glob("*.json"), key=lambda file: file.stem))
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(document(), "utf-8")
