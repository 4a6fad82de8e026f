"""The tables of docs/scaling.md: what distilling a large teacher costs, by arithmetic.

    python bench/scaling.py            print the tables
    python bench/scaling.py --write    put them into docs/scaling.md

Each table but one follows from the inputs below; those named as assumptions are what a first run of
your own should replace. Bytes of a cache are those of the code that writes it. "measured" is what
bench/train_speed.py found, on a CPU.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdexport.train.columns import HALF, id_type

MEASURED = Path(__file__).parent / "results" / "train-speed.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
GPUS = (8, 16, 32, 64)
Rows = list[Sequence[str]]


@dataclass(frozen=True)
class Teacher:
    """A Llama-shaped model of 70 B parameters, in bfloat16."""

    n_parameters: float = 70.6e9
    n_layers: int = 80
    n_kv_heads: int = 8
    head_size: int = 128
    hidden_size: int = 8192
    vocab_size: int = 128_256
    bytes_each: int = 2

    @property
    def n_bytes(self) -> float:
        return self.n_parameters * self.bytes_each

    @property
    def kv_bytes(self) -> float:
        """Of one token in the key-value cache."""
        return 2.0 * self.n_layers * self.n_kv_heads * self.head_size * self.bytes_each


@dataclass(frozen=True)
class Student:
    """100 M parameters, embeddings and head tied, over a vocabulary cut to 32,768 tokens."""

    n_parameters: float = 100e6
    n_layers: int = 24
    hidden_size: int = 576
    vocab_size: int = 32_768


@dataclass(frozen=True)
class Machine:
    """NVIDIA's data sheet of an H100 SXM, dense bfloat16, eight to a machine."""

    flops: float = 989e12
    bytes_per_s: float = 3.35e12
    memory: float = 80e9
    within: float = 450e9  # to the other GPUs of its machine, each way, bytes/s
    between: float = 50e9  # to those of other machines: 400 Gb/s for each GPU
    per_machine: int = 8


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. Replace them by what a first hour of your own run shows."""

    teacher_mfu: float = 0.4  # share of the peak that reading whole texts reaches
    writing_share: float = 0.5  # of memory bandwidth, and of the peak, when it writes
    student_mfu: float = 0.2  # a small model fills a large GPU badly
    gpus_a_teacher: int = 4  # tensor parallel
    at_once: int = 256  # texts that one copy of the teacher writes at a time


@dataclass(frozen=True)
class Data:
    """Texts: prompt and completion in the teacher's tokens."""

    n_texts: float
    prompt: int = 200
    completion: int = 100
    epochs: int = 3
    batch_size: int = 512

    @property
    def n_tokens(self) -> float:
        return self.n_texts * (self.prompt + self.completion)


TEACHER, STUDENT, GPU, ASSUMED = Teacher(), Student(), Machine(), Assumed()
AMOUNTS = (Data(1e5), Data(1e6), Data(1e7))


def top_k_bytes(vocab_size: int, top_k: int) -> int:
    """Of one token's targets in a cache: ids and logprobs, and the tail."""
    return (id_type(vocab_size).itemsize + HALF) * top_k + HALF


def writing_rate() -> float:
    """Tokens that one GPU of a writing teacher gives in a second.

    A step reads all weights and the cache of every text, and multiplies: whichever takes longer.
    """
    data = AMOUNTS[0]
    context = data.prompt + data.completion / 2
    n_bytes = TEACHER.n_bytes + ASSUMED.at_once * context * TEACHER.kv_bytes
    reads = n_bytes / (ASSUMED.gpus_a_teacher * GPU.bytes_per_s * ASSUMED.writing_share)
    flops = 2 * TEACHER.n_parameters * ASSUMED.at_once
    computes = flops / (ASSUMED.gpus_a_teacher * GPU.flops * ASSUMED.writing_share)
    return ASSUMED.at_once / max(reads, computes) / ASSUMED.gpus_a_teacher


def reading_rate() -> float:
    """Tokens of whole texts that one GPU of the teacher reads in a second: 2 N FLOP each."""
    return GPU.flops * ASSUMED.teacher_mfu / (2 * TEACHER.n_parameters)


def learning_rate_of_gpu() -> float:
    """Tokens that one GPU trains the student on in a second, alone: 6 N FLOP each."""
    return GPU.flops * ASSUMED.student_mfu / (6 * STUDENT.n_parameters)


def summing_s(n_gpus: int) -> float:
    """A ring all-reduce of the gradients in float32, which here nothing overlaps with."""
    if n_gpus == 1:
        return 0.0
    wire = GPU.within if n_gpus <= GPU.per_machine else GPU.between
    return 2 * (n_gpus - 1) / n_gpus * 4 * STUDENT.n_parameters / wire


def step_s(data: Data, n_gpus: int) -> tuple[float, float]:
    """Seconds of a step: computing, and summing gradients."""
    tokens = data.batch_size * (data.prompt + data.completion)
    return tokens / n_gpus / learning_rate_of_gpu(), summing_s(n_gpus)


def training_s(data: Data, n_gpus: int) -> float:
    """All epochs of a student."""
    return data.epochs * data.n_texts / data.batch_size * sum(step_s(data, n_gpus))


def per_token() -> Rows:
    """What one token costs in each part."""
    head = ["a token that", "FLOP", "by", "tokens/s a GPU"]
    n, m = TEACHER.n_parameters, STUDENT.n_parameters
    return [
        head,
        ["the teacher writes", f"{2 * n:.2e}", "2 N, or memory", f"{writing_rate():,.0f}"],
        ["the teacher reads", f"{2 * n:.2e}", "2 N", f"{reading_rate():,.0f}"],
        ["the student learns", f"{6 * m:.1e}", "6 N", f"{learning_rate_of_gpu():,.0f}"],
    ]


def measured() -> Rows:
    """What a token of a text, prompt or completion, took where training was measured."""
    found = json.loads(MEASURED.read_text("utf-8"))
    settings, rounds = found["settings"], found["rounds"]["kdexport"]
    n_tokens, n_threads = settings["tokens"], settings["threads"]
    n_asked = n_tokens * (1 + settings["batch_size"] / settings["texts"])  # and held-out texts
    asked = statistics.median(n_asked / one["asked_s"] for one in rounds)
    each = n_tokens / settings["completion_tokens"]
    learnt = statistics.median(each * one["tokens_per_s"][1] for one in rounds)
    rows: Rows = [["a token that", "parameters", "by", "tokens/s a core", "GFLOP/s"]]
    for name, of, rate in (("teacher reads", 2, asked), ("student learns", 6, learnt)):
        n = settings[f"{name.split()[0]}_parameters"]
        told = [f"{rate / n_threads:,.0f}", f"{of * n * rate / n_threads / 1e9:,.0f}"]
        rows.append([f"the {name}", f"{n / 1e6:.0f} M", f"{of} N", *told])
    return rows


def fits() -> Rows:
    """Whether the teacher fits, and for how many texts at once."""
    rows: Rows = [["GPUs a teacher", "weights a GPU", "left for its cache", "tokens in it"]]
    for n_gpus in (2, 4, 8):
        weights = TEACHER.n_bytes / n_gpus
        left = 0.9 * GPU.memory - weights
        tokens = left * n_gpus / TEACHER.kv_bytes
        rows.append(
            [f"{n_gpus}", f"{weights / 1e9:.0f} GB", f"{left / 1e9:.0f} GB", f"{tokens:,.0f}"]
        )
    return rows


def caches() -> Rows:
    """Bytes of the teacher's targets."""
    forms = {
        f"top 64 of the student's {STUDENT.vocab_size:,} tokens": top_k_bytes(
            STUDENT.vocab_size, 64
        ),
        f"top 64 of all {TEACHER.vocab_size:,} tokens": top_k_bytes(TEACHER.vocab_size, 64),
        "the last hidden state": HALF * TEACHER.hidden_size,
        "the whole distribution": HALF * TEACHER.vocab_size,
    }
    head = ["kept of a token", "bytes", *(f"{data.n_texts:,.0f} texts" for data in AMOUNTS)]
    return [head, *([name, f"{n:,}", *_sizes(n)] for name, n in forms.items())]


def _sizes(n_bytes: int) -> Iterator[str]:
    for data in AMOUNTS:
        yield f"{n_bytes * data.n_texts * data.completion / 1e9:,.1f} GB"


def hours() -> Rows:
    """Hours of each part."""
    rows: Rows = [["texts", "GPUs", "teacher writes", "teacher reads", "student learns", "in all"]]
    for data in AMOUNTS:
        for n_gpus in GPUS:
            writes = data.n_texts * data.completion / writing_rate()
            writes += data.n_texts * data.prompt / reading_rate()
            reads = data.n_tokens / reading_rate()
            parts = [writes / n_gpus, reads / n_gpus, training_s(data, n_gpus)]
            told = [f"{seconds / 3600:.2f}" for seconds in (*parts, sum(parts))]
            rows.append([f"{data.n_texts:,.0f}", f"{n_gpus}", *told])
    return rows


def steps() -> Rows:
    """A student's step on several GPUs, and what share of it is computing."""
    rows: Rows = [["GPUs", "texts a GPU", "computing", "summing", "share that computes"]]
    data = AMOUNTS[1]
    for n_gpus in (1, *GPUS):
        computes, sums = step_s(data, n_gpus)
        share = computes / (computes + sums)
        each = data.batch_size // n_gpus
        told = [f"{1e3 * computes:.1f} ms", f"{1e3 * sums:.1f} ms", f"{100 * share:.0f} %"]
        rows.append([f"{n_gpus}", f"{each}", *told])
    return rows


def memory() -> Rows:
    """What a student in training holds on each GPU."""
    n = STUDENT.n_parameters
    tokens = 16 * (AMOUNTS[0].prompt + AMOUNTS[0].completion)
    of_layer = 34 * STUDENT.hidden_size * tokens
    return [
        ["on each GPU", "by", "bytes"],
        ["weights, gradients, two moments", "16 N", f"{16 * n / 1e9:.2f} GB"],
        [
            "activations of 16 texts",
            "34 H a token and layer",
            f"{of_layer * STUDENT.n_layers / 1e9:.2f} GB",
        ],
        [
            "the same, recomputed layer by layer",
            "2 H a token and layer, and one layer",
            f"{(2 * STUDENT.hidden_size * tokens * STUDENT.n_layers + of_layer) / 1e9:.2f} GB",
        ],
    ]


TABLES: dict[str, Callable[[], Rows]] = {
    "per token": per_token,
    "measured": measured,
    "fits": fits,
    "caches": caches,
    "hours": hours,
    "steps": steps,
    "memory": memory,
}


def table(name: str) -> str:
    """One of `TABLES` in Markdown, after a line that names it."""
    head, *body = TABLES[name]()
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join([f"<!-- bench/scaling.py: {name} -->", *lines, "<!-- end -->"])


def with_tables(text: str) -> str:
    """A document with its tables as they are now."""
    for name in TABLES:
        begin = text.index(f"<!-- bench/scaling.py: {name} -->")
        end = text.index("<!-- end -->", begin) + len("<!-- end -->")
        text = text[:begin] + table(name) + text[end:]
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text("utf-8")), "utf-8")
    else:
        print("\n\n".join(table(name) for name in TABLES))
