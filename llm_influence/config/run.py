"""Everything one fine-tuning run needs.

A search for good options of a run.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llm_influence.config.data import DataConfig, RenderingConfig
from llm_influence.config.document import Document, Section
from llm_influence.config.model import ModelConfig
from llm_influence.config.rules import Rule, load_rules, read_rules
from llm_influence.config.training import (
    EvaluationConfig,
    PretrainingConfig,
    PseudoLabelsConfig,
    TrainConfig,
    UpdateConfig,
)


class RunConfig(Document):
    """Everything one fine-tuning run needs; written beside the model it made."""

    output: str = "runs/run"
    data: DataConfig = DataConfig()
    rendering: RenderingConfig = RenderingConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    update: UpdateConfig = UpdateConfig()
    rules: list[Rule] = Field([], description="rules of recommendation, or a YAML file of them")

    @field_validator("rules", mode="before")
    @classmethod
    def _read_rules(cls, given: object) -> list[Rule]:
        """A file is read when the configuration is: what is saved holds the rules themselves."""
        return load_rules(given) if isinstance(given, str) else read_rules(given, "rules")

    @model_validator(mode="after")
    def _has_whom_to_ask(self) -> RunConfig:
        feedback = self.model.feedback
        if self.pseudo_labels.rounds and (feedback is None or feedback.kind != "binary"):
            raise ValueError(
                "a feedback head of kind 'binary' (model.feedback_head) for pseudo_labels.rounds"
            )
        if self.pseudo_labels.rounds and self.model.adapter.kind == "adalora":
            raise ValueError(
                "another adapter than adalora for pseudo_labels.rounds: what it has pruned cannot "
                "be grown again for the next round"
            )
        neighbors = self.model.item_head.neighbors
        if (neighbors.share or neighbors.share_of_new) and self.data.knowledge.source is None:
            raise ValueError(
                "data.knowledge.source for model.item_head.neighbors: neighbours are the items "
                "that share entities of a graph"
            )
        counting = {
            "item_head.repeats": self.model.item_head.repeats,
            "feedback_head.aggregate_days": self.model.feedback_head.aggregate_days,
        }
        for name, wanted in counting.items():
            if wanted and self.rendering.style != "token":
                raise ValueError(
                    f"rendering.style token for model.{name}: there what is counted has a token "
                    "of its own"
                )
        return self


class SearchedOption(Section):
    """The values that one option may take: from ``low`` to ``high``, or one of ``choices``.

    A range is of whole numbers where both its ends are written as whole numbers. A choice is
    anything that YAML can say, a whole section included.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="draw the logarithm evenly: for rates and sizes")
    choices: list[Any] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> SearchedOption:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices, or low and high, not both")
        elif self.low is None or self.high is None:
            raise ValueError("low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low ({self.low}) below high ({self.high})")
        elif self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) above 0 for log")
        return self

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """Both ends of a range; nothing of choices may ask for them."""
        if self.low is None or self.high is None:
            raise TypeError("choices have no ends")
        return self.low, self.high

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class PrunerConfig(Section):
    """When a trial that does badly is ended early.

    ``median``: at every validation, a trial whose best one so far is below the median of what
    finished trials had at the same validation ends (Golovin et al. 2017, Google Vizier).
    """

    kind: Literal["median", "none"] = "median"
    startup_trials: int = Field(5, ge=1, description="finished trials before any is ended early")
    warmup_validations: int = Field(1, ge=0, description="of a trial, at which it never ends")


class SearchConfig(Document):
    """A search for good options on validation (`llm_influence.training.search`).

    ``base`` is a run's YAML file, or its options themselves; ``space`` maps dotted options of it
    to the values they may take.
    """

    base: str | dict[str, Any]
    output: str = "runs/search"
    space: dict[str, SearchedOption] = Field(min_length=1)
    trials: int = Field(30, ge=1, description="in all, those of earlier starts included")
    seconds: float | None = Field(
        None, gt=0, description="no trial begins when the trials took so long in all"
    )
    startup_trials: int = Field(8, ge=1, description="drawn at random before TPE draws")
    pruner: PrunerConfig = PrunerConfig()
    seed: int = 0

    def base_run(self) -> RunConfig:
        """The run that trials change.

        Raises:
            ConfigError: The file cannot be read, or an option is wrong.
        """
        if isinstance(self.base, str):
            return RunConfig.load(self.base)
        return RunConfig.of(self.base, "base")
