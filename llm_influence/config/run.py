"""Everything one fine-tuning run needs."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from llm_influence.config.data import DataConfig, RenderingConfig
from llm_influence.config.document import Document
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
            "feedback_head.totals_days": self.model.feedback_head.totals_days,
        }
        for name, wanted in counting.items():
            if wanted and self.rendering.style != "token":
                raise ValueError(
                    f"rendering.style token for model.{name}: there what is counted has a token "
                    "of its own"
                )
        return self
