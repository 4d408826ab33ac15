"""Configuration of a fine-tuning run, and of a search for good options of a run."""

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
    """Everything that one fine-tuning run needs; saved in the folder of the run."""

    output: str = Field("runs/run", description="Folder for the model, the split and the metrics.")
    data: DataConfig = DataConfig()
    rendering: RenderingConfig = RenderingConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    update: UpdateConfig = UpdateConfig()
    rules: list[Rule] = Field(
        [], description="Rules of recommendation: a list of rules, or a YAML file with such a list."
    )

    @field_validator("rules", mode="before")
    @classmethod
    def _read_rules(cls, tree: object) -> list[Rule]:
        """A saved configuration holds the rules themselves, not the path of their file."""
        return load_rules(tree) if isinstance(tree, str) else read_rules(tree, "rules")

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        model, feedback = self.model, self.model.feedback
        if self.pseudo_labels.rounds and (feedback is None or feedback.kind != "binary"):
            raise ValueError(
                "a feedback head of kind 'binary' (model.feedback_head) for pseudo_labels.rounds"
            )
        if self.pseudo_labels.rounds and model.adapter.kind == "adalora":
            raise ValueError(
                "another adapter than adalora for pseudo_labels.rounds: pruned ranks cannot be "
                "restored for the next round"
            )
        neighbors = model.item_head.neighbors
        if (neighbors.share or neighbors.share_of_new) and self.data.knowledge.source is None:
            raise ValueError(
                "data.knowledge.source for model.item_head.neighbors: neighbours are the items "
                "that share entities of a graph"
            )
        windows = self.train.examples != "prefixes"
        if model.positions == "end" and windows and model.random_offset == 0:
            raise ValueError(
                "train.examples prefixes or a model.random_offset for model.positions end: "
                "positions that count from the end differ for every prefix of a window"
            )
        if model.feedback_head.aggregate_days and self.rendering.style != "token":
            raise ValueError(
                "rendering.style token for model.feedback_head.aggregate_days: only there every "
                "field has a token of its own that can be counted"
            )
        return self


class SearchedOption(Section):
    """The values that a search may give to one option: a range or a list of choices.

    A range is of whole numbers where both ends are written as whole numbers.
    """

    low: int | float | None = Field(
        None, description="Lower end of the range. null: there are choices."
    )
    high: int | float | None = Field(
        None, description="Upper end of the range. null: there are choices."
    )
    log: bool = Field(
        False, description="Whether the logarithm is drawn evenly, as suits rates and sizes."
    )
    choices: list[Any] | None = Field(
        None, min_length=1, description="Values to choose from, or whole sections. null: a range."
    )

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
        """Both ends of a range; an error for choices."""
        if self.low is None or self.high is None:
            raise TypeError("choices have no ends")
        return self.low, self.high

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class PrunerConfig(Section):
    """When a trial that does badly is stopped early."""

    kind: Literal["median", "none"] = Field(
        "median",
        description="median: stop a trial at a validation where its best metric so far is below "
        "the median of finished trials (Golovin et al. 2017, Google Vizier). none: never.",
    )
    startup_trials: int = Field(
        5, ge=1, description="Number of finished trials before any trial is stopped early."
    )
    warmup_validations: int = Field(
        1, ge=0, description="Number of first validations of a trial at which it is never stopped."
    )


class SearchConfig(Document):
    """A search for the options of a run that do best on validation."""

    base: str | dict[str, Any] = Field(
        description="The run that trials change: its YAML file, or its options themselves."
    )
    output: str = Field("runs/search", description="Folder for the trials and their table.")
    space: dict[str, SearchedOption] = Field(
        min_length=1, description="Values that trials may choose, by dotted name of an option."
    )
    trials: int = Field(
        30, ge=1, description="Number of trials in all, including those of earlier starts."
    )
    seconds: float | None = Field(
        None, gt=0, description="Seconds of all trials after which none begins. null: no limit."
    )
    startup_trials: int = Field(
        8, ge=1, description="Number of trials drawn at random before the TPE sampler chooses."
    )
    pruner: PrunerConfig = PrunerConfig()
    seed: int = Field(0, description="Seed of the sampler that draws options.")

    def base_run(self) -> RunConfig:
        """The run that trials change.

        Raises:
            ConfigError: The file cannot be read, or an option is wrong.
        """
        if isinstance(self.base, str):
            return RunConfig.load(self.base)
        return RunConfig.of(self.base, "base")
