"""A finished run: its folder's model, split and facts, for whatever comes after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState

from llm_influence.config.data import DataConfig
from llm_influence.config.model import RECURRENT, ModelConfig
from llm_influence.config.rules import load_rules
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.datasets.sources import open_data
from llm_influence.errors import ConfigError, choices
from llm_influence.evaluation.evaluate import Record
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.report.tables import ReportFacts, flat_facts
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

    def examples(self, part: str, label: float | None = None) -> EvaluationSet:
        """The examples of ``validation`` or ``test``; of one ``label`` alone where it is given.

        Raises:
            ConfigError: ``part`` is neither, the model reads no labels, or none is this one.
        """
        known = {"validation": self.split.validation, "test": self.split.test}
        if part not in known:
            raise ConfigError(
                f"no examples {part!r}",
                where="examples",
                expected=choices(known, part),
                fix="name the part of the split that is asked",
            )
        return known[part] if label is None else self._labelled(known[part], label)

    def _labelled(self, examples: EvaluationSet, label: float) -> EvaluationSet:
        head = self.config.model.feedback
        if head is None:
            raise ConfigError(
                f"label {label:g} is asked for, and the model reads none",
                where="label",
                expected="a run with a feedback head, which says what its labels are",
                fix="leave the label out",
            )
        labels = feedback_labels(self.split.log, head)[examples.events]
        if not (labels == label).any():
            raise ConfigError(
                f"no question has label {label:g}",
                where="label",
                expected=choices(f"{each:g}" for each in np.unique(labels[~np.isnan(labels)])),
                fix="ask for a label that examples have",
            )
        return examples.select(labels == label)

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
        """What a report says beside the explanations, with the top k of the users it shows.

        A model whose item head was not trained recommends nothing.
        """
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
            protocol=flat_facts(described),
            # with one relevant item a row, recall@K is HR@K: one column is enough for a reader
            metrics=[{k: v for k, v in each.items() if "recall@" not in k} for each in metrics],
            recommendations={
                history.user_id: [
                    (found.title, found.probability) for found in self.model.recommend(history, k)
                ]
                for history in shown
                if model.item_head.weight > 0
            },
            rules={
                history.user_id: [
                    change.to_text() for change in self.model.rule_changes(history, k)
                ]
                for history in shown
            },
        )


def sample_users(log: BehaviorLog, count: int, seed: int = 0) -> BehaviorLog:
    """The log of ``count`` users drawn by the seed, all where there are fewer."""
    kept = np.isin(np.arange(len(log)), _drawn(len(log), count, seed))
    return log.prefix(np.where(kept, log.lengths, 0))


def sample_examples(examples: EvaluationSet, count: int, seed: int = 0) -> EvaluationSet:
    """``count`` examples drawn by the seed, in their order, all where there are fewer."""
    return examples.select(_drawn(len(examples), count, seed))


def _drawn(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def heads_as_records(heads: dict[str, list[Record]]) -> list[Record]:
    """Records of `compare_heads` in one list; where there are several heads, each says its own."""
    if len(heads) == 1:
        return next(iter(heads.values()))
    return [{"head": head, **record} for head, records in heads.items() for record in records]


def whole_histories(table: pa.Table, log: BehaviorLog, users: int) -> list[History]:
    """Histories of the first users of an influence table, of whom nothing later is in the log.

    The history before a question of a split is no whole one: what is recommended at its user's
    end is no recommendation of that moment.
    """
    found = []
    for user in pc.unique(table["user_id"]).to_pylist()[:users]:
        history = log[user]
        last = pc.max(table.filter(pc.equal(table["user_id"], user))["timestamp"]).as_py()
        if last == history.timestamps[-1]:
            found.append(history)
    return found


def _backbone(model: ModelConfig) -> str:
    """The backbone and how much of it there is."""
    if model.backbone in RECURRENT:
        sizes = model.recurrent
        words = f", items read by {sizes.words}" if sizes.words else ""
        return f"{model.backbone}, {sizes.layers} x {sizes.width}{words}"
    return model.backbone + (f", its first {model.layers} layers" if model.layers else "")
