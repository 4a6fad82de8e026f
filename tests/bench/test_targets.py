"""What the bench of kept targets makes of distributions that are known."""

import math

import torch

from bench.targets import apart, whole
from kdexport.train.data import Batch, Encoded
from kdexport.train.sampled import Drawn
from kdexport.train.targets import Targets

P = torch.tensor([[0.5, 0.25, 0.125, 0.125]])


def test_a_tail_is_spread_evenly() -> None:
    kept = Targets(P[:, :1].log(), torch.tensor([[0]]), torch.tensor([0.5]).log())
    torch.testing.assert_close(whole(kept, 4), torch.tensor([[0.5, 1 / 6, 1 / 6, 1 / 6]]))


def test_drawn_tokens_weigh_what_they_stand_for() -> None:
    ids, worth = torch.tensor([[0, 3]]), torch.tensor([0.5]).log()
    kept = Drawn(P.log().gather(1, ids), ids, worth).targets()
    torch.testing.assert_close(whole(kept, 4), torch.tensor([[0.5, 0.0, 0.0, 0.5]]))
    again = Targets(P.log()[:, [0, 0, 3, 1]], torch.tensor([[0, 0, 3, 1]]), torch.zeros(1), 4)
    torch.testing.assert_close(whole(again, 4), torch.tensor([[0.5, 0.25, 0.0, 0.25]]))


def test_missing_tokens_make_the_divergence_infinite() -> None:
    text = Encoded("a", torch.tensor([1, 2]).numpy(), 1, 1)

    def of(targets: Targets) -> tuple[float, float]:
        def live(_: Batch) -> Targets:
            return Targets(P.log())

        return apart(lambda _: targets, live, [text])

    assert of(Targets(P.log())) == (0.0, 0.0)
    top = Targets(P[:, :1].log(), torch.tensor([[0]]), torch.tensor([0.5]).log())
    kl = 0.25 * math.log(0.25 * 6) + 0.25 * math.log(0.125 * 6)
    torch.testing.assert_close(torch.tensor(of(top)), torch.tensor((kl, 0.25 - 1 / 6)))
    ids = torch.tensor([[0, 3]])
    drawn = Drawn(P.log().gather(1, ids), ids, torch.tensor([0.5]).log()).targets()
    assert of(drawn) == (math.inf, 0.375)
