import pytest
from pydantic import ValidationError

from kdexport.recipe.student import StudentSection


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "projected", "n_layers": 2}, "needs a hidden_size"),
        ({"init": "checkpoint"}, "go together"),
        ({"from": "some/folder"}, "go together"),
        ({"init": "checkpoint", "from": "x", "n_layers": 2}, "n_layers cannot be chosen"),
        ({"steps": [4, 2]}, "go together"),
        ({"between": {"max_steps": 2}}, "go together"),
        ({"steps": [4, 2], "between": {}}, "say how long"),
        ({"steps": [4, 4], "between": {"epochs": 1}}, "must go down"),
        ({"steps": [4], "between": {"epochs": 1}}, "at least 2 items"),
        ({"steps": [4, 1], "between": {"epochs": 1}}, "greater than or equal to 2"),
        ({"steps": [4, 2], "between": {"epochs": 0}}, "greater than 0"),
        ({"steps": [4, 2], "between": {"epochs": 1}, "n_layers": 2}, "leave one of them out"),
        ({"budget": {}}, "name a limit"),
        ({"budget": {"tpot_ms": 0}}, "greater than 0"),
        (
            {"budget": {"size_mb": 9}, "steps": [4, 2], "between": {"epochs": 1}},
            "which steps has already",
        ),
        ({"budget": {"size_mb": 9}, "init": "checkpoint", "from": "x"}, "checkpoint has already"),
        ({"budget": {"size_mb": 9}, "init": "scratch", "n_heads": 4}, "leave them out"),
        ({"steps": [4, 2], "between": {"epochs": 1}, "init": "scratch"}, "steps are of init"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StudentSection.model_validate(fields)


def test_the_last_step_says_how_many_layers_there_are() -> None:
    steps = StudentSection.model_validate({"steps": [4, 2], "between": {"epochs": 0.5}})
    assert steps.final_layers == 2
    assert StudentSection(n_layers=3).final_layers == 3
    assert StudentSection().final_layers is None


def test_a_trial_is_cut_once_and_measures_nothing() -> None:
    steps = StudentSection.model_validate({"steps": [4, 2], "between": {"epochs": 1}}).at_once()
    assert (steps.steps, steps.between, steps.n_layers) == (None, None, 2)
    budget = {"init": "projected", "budget": {"size_mb": 9}}
    assert StudentSection.model_validate(budget).at_once() == StudentSection(init="scratch")
    assert StudentSection(n_layers=3).at_once() == StudentSection(n_layers=3)
