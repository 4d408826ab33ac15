"""A finished run: its folder's model, split and facts, for whatever comes after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from llm_influence.config import RECURRENT, DataConfig, ModelConfig, RunConfig, load_rules
from llm_influence.data.log import BehaviorLog
from llm_influence.data.sources import open_data
from llm_influence.data.splits import Split
from llm_influence.evaluation.comparison import Record
from llm_influence.modeling.devices import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.report.facts import ReportFacts
from llm_influence.types import History


@dataclass(frozen=True, slots=True)
class Run:
    """The folder that `training.finetune` wrote, opened.

    Attributes:
        folder: The folder.
        config: Its configuration.
        model: Its model, in eval mode, on this process's accelerator if there is one.
        split: The very split it was trained and measured on.
    """

    folder: Path
    config: RunConfig
    model: InfluenceModel
    split: Split

    @classmethod
    def open(cls, folder: str | Path, *, rules: str | Path | None = None) -> Run:
        """Open a run folder.

        Args:
            folder: The folder.
            rules: YAML file of rules that stand in place of the run's own.

        Raises:
            ModelFolderError, DataError, ConfigError: A part is missing or damaged.
        """
        folder = Path(folder)
        model = InfluenceModel.from_pretrained(folder)
        model.to(PartialState(cpu=on_cpu()).device)
        if rules is not None:
            model.rules = load_rules(rules)
        split = Split.load(folder / "split", catalogue=model.catalogue)
        return cls(folder, RunConfig.load(folder / "run.yaml"), model, split)

    def open_log(
        self, source: str | None, *, items: str | None = None, users: str | None = None
    ) -> BehaviorLog:
        """The log to explain: another source read by the run's own column names, or its own log.

        Raises:
            DataError: The source cannot be read.
        """
        if source is None:
            return self.split.log
        data = self.config.data.model_dump() | {"source": source, "items": items, "users": users}
        data.pop("knowledge")  # the model's own catalogue says what items are called
        return open_data(DataConfig.model_validate(data))

    def test_histories(self, users: int, *, seed: int = 0, skip: int = 0) -> list[History]:
        """Histories before the tested events of ``users`` users drawn by the seed, in their order.

        All users where there are fewer; of a user who is asked several times, the first question.
        The first ``skip`` drawn are left out: whoever chooses a method on some users can measure it
        on others.
        """
        rows = self.split.test
        first = np.unique(rows.users, return_index=True)[1]
        drawn = np.random.default_rng(seed).permutation(len(first))[skip : skip + users]
        return [rows.history(int(first[each])) for each in sorted(drawn)]

    def report_facts(self, metrics: list[Record], shown: list[History], k: int = 10) -> ReportFacts:
        """What a report says beside the explanations, with the top k of the users it shows."""
        model, rendering = self.config.model, self.config.rendering
        described = self.model.protocol
        return ReportFacts(
            title=f"What made the model predict this? {self.config.data.source}",
            model={
                "Backbone": _backbone(model),
                "Adapter": model.adapter.describe(),
                "Rendering": f"style {rendering.style}, template {rendering.template}",
                "Events read": f"the last {self.model.encoder.max_events}",
            },
            protocol=_flat(described),
            # with one relevant item a row, recall@K is HR@K: one column is enough for a reader
            metrics=[{k: v for k, v in each.items() if "recall@" not in k} for each in metrics],
            recommendations={
                history.user_id: [
                    (found.title, found.probability) for found in self.model.recommend(history, k)
                ]
                for history in shown
            },
            rules={
                history.user_id: [
                    change.to_text() for change in self.model.rule_changes(history, k)
                ]
                for history in shown
            },
        )


def _backbone(model: ModelConfig) -> str:
    """The backbone and how much of it there is."""
    if model.backbone in RECURRENT:
        sizes = model.recurrent
        words = f", items read by {sizes.words}" if sizes.words else ""
        return f"{model.backbone}, {sizes.layers} x {sizes.width}{words}"
    return model.backbone + (f", its first {model.layers} layers" if model.layers else "")


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, str]:
    """Nested facts as one level of labels and texts."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        label = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}: ")
        else:
            flat[label] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat
