"""From a recipe's wishes to the settings of the loop."""

import pytest

from kdexport.pipeline.training import train_settings
from kdexport.recipe.train import TrainSection


@pytest.mark.parametrize(
    ("minutes", "spent", "left"), [(12.0, 0.0, 12.0), (12.0, 120.0, 10.0), (12.0, 3000.0, 4.0)]
)
def test_the_clock_counts_the_teacher_s_targets(minutes: float, spent: float, left: float) -> None:
    wish = TrainSection(max_minutes=minutes)
    settings = train_settings(wish, 100, "float32", spent)
    assert settings.budget.max_minutes == left
    assert settings.budget.max_steps is None


def test_epochs_become_steps_and_the_fewer_count() -> None:
    wish = TrainSection(epochs=2, batch_size=4, accumulate=2)
    assert train_settings(wish, 25, "float32", 0.0).budget.max_steps == 26
    fewer = wish.model_copy(update={"max_steps": 7})
    assert train_settings(fewer, 25, "float32", 0.0).budget.max_steps == 7
