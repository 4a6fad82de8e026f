"""The section of a recipe that says what the student is; knows no files and no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdexport.recipe.sections import Count, Positive, Section, Text

OF_NO_TEACHER = ("scratch", "checkpoint")  # ways that take nothing of the teacher's weights
OWN_SIZES = ("n_layers", "intermediate_size", "hidden_size", "n_heads", "n_kv_heads")


class BetweenSection(Section):
    """How long a student is distilled between two cuts."""

    epochs: Positive | None = None
    max_steps: Count | None = None

    @model_validator(mode="after")
    def _an_end(self) -> "BetweenSection":
        if not (self.epochs or self.max_steps):
            raise ValueError("say how long: epochs or max_steps")
        return self


class BudgetSection(Section):
    """What the student's bundle may cost: the most capable candidate within it is chosen."""

    tpot_ms: Positive | None = Field(None, description="Between two tokens, on this machine")
    size_mb: Positive | None = Field(None, description="Of the bundle, 10^6 bytes")

    @model_validator(mode="after")
    def _a_limit(self) -> "BudgetSection":
        if self.tpot_ms is None and self.size_mb is None:
            raise ValueError("name a limit: tpot_ms, size_mb or both")
        return self


class StudentSection(Section):
    """The small model. None keeps the teacher's size."""

    init: Literal["prune", "scratch", "projected", "checkpoint"] = Field(
        "prune",
        description="Cut from the teacher; random weights of a smaller configuration, or such with "
        "the teacher's embeddings projected to its width; or a checkpoint of any shape",
    )
    source: Text | None = Field(
        None, alias="from", description="The checkpoint, of the teacher's tokens; as teacher.source"
    )
    n_layers: int | None = Field(None, ge=2)
    steps: list[Annotated[int, Field(ge=2)]] | None = Field(
        None, min_length=2, description="Layers after each cut, with a short distillation between"
    )
    between: BetweenSection | None = Field(None, description="How long that distillation is")
    budget: BudgetSection | None = Field(
        None, description="Sizes are chosen, by measuring candidates, so that these limits hold"
    )
    vocab_size: int | None = Field(None, ge=260, description="Tokens kept; None keeps all")
    intermediate_size: Count | None = Field(None, description="Feed-forward width")
    hidden_size: Count | None = Field(None, description="Channels of embeddings and layers")
    n_heads: Count | None = Field(None, description="Of attention; pruning keeps whole groups")
    n_kv_heads: Count | None = Field(None, description="Key-value heads; each keeps its heads")

    @property
    def final_layers(self) -> int | None:
        """The student's layers after its last cut; None: the teacher's."""
        return self.steps[-1] if self.steps else self.n_layers

    def at_once(self) -> "StudentSection":
        """The same in one cut and of the sizes that are named: soon made, for a trial."""
        unsized = self.init == "projected" and self.hidden_size is None
        init = "scratch" if unsized else self.init
        without = dict.fromkeys(("steps", "between", "budget"))
        return self.model_copy(update={**without, "init": init, "n_layers": self.final_layers})

    @model_validator(mode="after")
    def _sizes(self) -> "StudentSection":
        if self.init == "projected" and self.hidden_size is None and self.budget is None:
            raise ValueError("init: projected needs a hidden_size to project to")
        if (self.init == "checkpoint") != (self.source is not None):
            raise ValueError("init: checkpoint and from, which names it, go together")
        own = [name for name in OWN_SIZES if getattr(self, name) is not None]
        if self.budget is not None and (self.steps or self.init == "checkpoint"):
            what = "steps" if self.steps else "init: checkpoint"
            raise ValueError(f"a budget chooses sizes, which {what} has already")
        heads = self.n_heads or self.n_kv_heads
        if self.budget is not None and self.init != "prune" and heads and not self.hidden_size:
            raise ValueError("a budget chooses heads with hidden_size: leave them out, or name all")
        if self.init == "checkpoint" and own:
            raise ValueError(f"{own[0]} cannot be chosen: a checkpoint has sizes of its own")
        return self

    @model_validator(mode="after")
    def _in_steps(self) -> "StudentSection":
        if (self.steps is None) != (self.between is None):
            raise ValueError("steps, and between, which says how long is trained, go together")
        if self.steps is None:
            return self
        if self.init != "prune":
            raise ValueError("steps are of init: prune")
        if self.n_layers is not None:
            raise ValueError("n_layers is what steps end with: leave one of them out")
        if any(a <= b for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("steps must go down")
        return self
