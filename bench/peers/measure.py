"""The rounds: every arm in turn, in an order drawn anew for each; only ratios inside a round count.

What comes out is, for each arm and measure, a list with one number a round.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.process import Bystanders, Entrant, PeerArm, running
from kdexport.errors import KdexportError
from kdexport.measuring.arms import Answer
from kdexport.system.console import Tracker

Series = dict[str, dict[str, list[float]]]
N_VARIANTS = 8


@dataclass(frozen=True)
class Settings:
    """How much is measured. ``prompts``: texts of `n_prompt`, `n_long` and `n_deep` tokens."""

    n_threads: int = 2
    n_prompt: int = 128
    n_new: int = 64
    n_long: int = 1000
    n_deep: int = 2000
    n_rounds: int = 7
    n_deep_rounds: int = 3
    n_opens: int = 3
    n_windows: int = 16
    n_window_tokens: int = 256
    n_step_windows: int = 4
    seed: int = 0

    @property
    def n_turns(self) -> int:
        """Turns of one arm, for the progress."""
        fidelity = 2 if self.n_windows else 0
        return self.n_opens + self.n_rounds + 1 + 4 * self.n_deep_rounds + fidelity


@dataclass
class Bench:
    """Entrants under measurement, and what was found."""

    entrants: Sequence[Entrant]
    settings: Settings
    prompts: Mapping[int, str]
    progress: Tracker

    def __post_init__(self) -> None:
        self.series: Series = {entrant.name: defaultdict(list) for entrant in self.entrants}
        self.facts: dict[str, Answer] = {}
        self.watch = Bystanders()
        self._order = random.Random(self.settings.seed)
        self._n_done = 0
        self._all: Sequence[PeerArm] = ()

    def run(self, reference: Path | None) -> None:
        """All of it: openings, speed, memory, depth and batches, then fidelity."""
        for _ in range(self.settings.n_opens - 1):
            for entrant in self._shuffled(self.entrants):
                with running([entrant], self.settings.n_threads) as (arm,):
                    self._note(entrant.name, load_s=arm.facts["load_s"])
                self._tick(f"{entrant.name}: opening")
        with running(self.entrants, self.settings.n_threads) as arms:
            self._all = arms
            for arm in arms:
                name = arm.entrant.name
                self.facts[name] = {k: v for k, v in arm.facts.items() if k != "load_s"}
                self._note(name, load_s=arm.facts["load_s"], size_mb=arm.entrant.size_mb)
            self._speed(arms)
            for name, answer in self._ask(arms, "memory").items():
                self._note(name, **answer)
            for _ in range(self.settings.n_deep_rounds):
                self._depth(arms)
            # Last, since the logits of whole texts swell a process.
            if reference is not None:
                self._fidelity(arms, reference)
        self.progress(1, 1)

    def _speed(self, arms: Sequence[PeerArm]) -> None:
        """Prompt and new tokens, round by round; the first is the warm-up."""
        for number in range(self.settings.n_rounds + 1):
            answers = self._latency(arms, self.settings.n_prompt, self.settings.n_new)
            if number:
                for name, answer in answers.items():
                    self._note(
                        name,
                        decode=answer["decode_tok_s"],
                        prefill=answer["prefill_tok_s"],
                        ttft_ms=answer["ttft_ms"],
                    )

    def _depth(self, arms: Sequence[PeerArm]) -> None:
        """First token after a long prompt; decoding after a longer one; variants as a batch."""
        wish = self.settings
        for name, answer in self._latency(arms, wish.n_long, 2).items():
            self._note(name, ttft_long_ms=answer["ttft_ms"])
        near = self._latency(arms, wish.n_prompt, wish.n_new)
        for name, answer in self._latency(arms, wish.n_deep, wish.n_new).items():
            speed = answer["decode_tok_s"]
            share = speed / near[name]["decode_tok_s"]
            self._note(name, decode_deep=speed, deep_share=share)
        ours = [arm for arm in arms if arm.entrant.ours]
        request = {"prompt": self.prompts[wish.n_prompt], "new_tokens": wish.n_new}
        one = self._ask(ours, "batch", n_variants=1, **request)
        for name, answer in self._ask(ours, "batch", n_variants=N_VARIANTS, **request).items():
            speed = answer["decode_tok_s"]
            self._note(name, batch_decode=speed, batch_gain=speed / one[name]["decode_tok_s"])

    def _fidelity(self, arms: Sequence[PeerArm], reference: Path) -> None:
        wish = self.settings
        for way, n_windows in (("prefill", wish.n_windows), ("steps", wish.n_step_windows)):
            answers = self._ask(
                arms, "kl", reference=str(reference), n_windows=n_windows, stepwise=way == "steps"
            )
            for name, answer in answers.items():
                self._note(name, **{f"kl_{way}": answer["kl"], f"top1_{way}": answer["top1"]})

    def _latency(self, arms: Sequence[PeerArm], n_prompt: int, n_new: int) -> dict[str, Answer]:
        prompt = self.prompts[n_prompt]
        answers = self._ask(self._shuffled(arms), "latency", prompt=prompt, new_tokens=n_new)
        counts = {name: answer["n_prompt"] for name, answer in answers.items()}
        if len(set(counts.values())) > 1:
            raise KdexportError(f"the arms cut the prompt into different numbers: {counts}")
        return answers

    def _ask(self, arms: Sequence[PeerArm], do: str, **request: Any) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for arm in arms:
            with self.watch.watched(arm, self._all):
                answers[arm.entrant.name] = arm.ask(do, **request)
            self._tick(f"{arm.entrant.name}: {do}")
        return answers

    def _shuffled(self, things: Sequence[Any]) -> list[Any]:
        return self._order.sample(list(things), len(things))

    def _note(self, name: str, **values: float) -> None:
        for measure, value in values.items():
            self.series[name][measure].append(value)

    def _tick(self, note: str) -> None:
        self._n_done += 1
        self.progress(self._n_done, len(self.entrants) * self.settings.n_turns + 1, note=note)
