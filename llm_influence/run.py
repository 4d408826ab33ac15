"""A finished run: the folder of `finetune`, opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from llm_influence.attribution.training_influence import (
    FILE,
    TrainingGradients,
    training_influence,
)
from llm_influence.config.data import DataConfig
from llm_influence.config.model import OWN_BACKBONES, ModelConfig
from llm_influence.config.rules import load_rules
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, feedback_labels
from llm_influence.datasets.public import open_data
from llm_influence.errors import ConfigError, OutputError, unknown
from llm_influence.evaluation.evaluate import Record, verdict
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.report.tables import ReportFacts, flat_facts
from llm_influence.types import History


@dataclass(frozen=True, slots=True)
class Run:
    """A folder that `finetune` wrote, opened.

    Attributes:
        folder: The folder.
        config: Its configuration.
        model: Its model in eval mode, on this process's accelerator if there is one.
        split: The split on which it was trained and measured.
    """

    folder: Path
    config: RunConfig
    model: InfluenceModel
    split: Split

    @classmethod
    def ensemble(
        cls,
        folders: Sequence[str | Path],
        out: str | Path,
        *,
        weights: Sequence[float] | None = None,
    ) -> Run:
        """Write the `Ensemble` of several runs as a run folder, and open it.

        Configuration and split are those of the first run.

        Args:
            folders: Folders of runs on the same split.
            out: The new folder.
            weights: Weights of the runs, with a sum of 1. Default: those with the highest
                likelihood of the validation items (`Ensemble.choose_weights`).

        Raises:
            OutputError: ``out`` holds a run already, or cannot be written.
            ConfigError: The runs have different splits.
            ModelError: The models do not fit each other, or the weights are not valid.
        """
        out = Path(out)
        if (out / "run.yaml").exists():
            raise OutputError(
                "the folder holds a run already",
                where=str(out),
                expected="a new folder",
                fix="choose another --out",
            )
        first, *others = runs = [cls.open(folder) for folder in folders]
        for run in others:
            if not _same_examples(run.split, first.split):
                raise ConfigError(
                    "the run has another split",
                    where=str(run.folder),
                    expected=f"the examples of {first.folder}",
                    fix="fine-tune all runs with the same data and data.split",
                )
        model = InfluenceModel.ensemble([run.model for run in runs], weights)
        if weights is None:
            model.choose_weights(first.split.validation)
        model.save_pretrained(out)
        first.split.save(out / "split")
        config = first.config.model_copy(update={"output": str(out)})
        config.save(out / "run.yaml")
        return cls(out, config, model, first.split)

    @classmethod
    def open(cls, folder: str | Path, *, rules: str | Path | None = None) -> Run:
        """Open a run folder.

        Args:
            folder: The folder.
            rules: YAML file of rules that replace the run's own.

        Raises:
            ModelFolderError, DataError, ConfigError: A part is missing or damaged.
        """
        folder = Path(folder)
        model = InfluenceModel.from_pretrained(folder)
        model.to(_device())
        if rules is not None:
            model.rules = load_rules(rules)
        split = Split.load(folder / "split", catalogue=model.catalogue)
        return cls(folder, RunConfig.load(folder / "run.yaml"), model, split)

    def open_log(
        self,
        source: str | None,
        *,
        items: str | None = None,
        users: str | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> BehaviorLog:
        """The run's own log, or another source read with the run's column names.

        Args:
            source: File or public name. None: the run's own log.
            items: Item table of the source.
            users: User table of the source.
            sample: Number of users drawn at random. Default: all.
            seed: Seed of the draw.

        Raises:
            DataError: The source cannot be read.
        """
        log = self.split.log
        if source is not None:
            data = self.config.data.model_dump(exclude={"knowledge"})  # the model has the names
            data |= {"source": source, "items": items, "users": users}
            log = open_data(DataConfig.model_validate(data))
        if sample is None:
            return log
        kept = np.isin(np.arange(len(log)), _drawn(len(log), sample, seed))
        return log.prefix(np.where(kept, log.lengths, 0))

    def examples(
        self, part: str, label: float | None = None, *, sample: int | None = None, seed: int = 0
    ) -> EvaluationSet:
        """The examples of ``validation`` or ``test``.

        Args:
            part: Name of the part.
            label: Only examples with this label. Default: all.
            sample: Number of examples drawn at random, in their order. Default: all.
            seed: Seed of the draw.

        Raises:
            ConfigError: The part is unknown, the model reads no labels, or no example has this one.
        """
        parts = {"validation": self.split.validation, "test": self.split.test}
        if part not in parts:
            raise unknown(ConfigError, "part", part, parts, where="examples")
        examples = parts[part] if label is None else self._labelled(parts[part], label)
        return examples if sample is None else examples.select(_drawn(len(examples), sample, seed))

    def _labelled(self, examples: EvaluationSet, label: float) -> EvaluationSet:
        head = self.config.model.feedback
        if head is None:
            raise ConfigError(
                f"label {label:g} for a model that reads no labels",
                where="label",
                expected="a run with a feedback head, which defines its labels",
                fix="leave the label out",
            )
        labels = feedback_labels(self.split.log, head)[examples.events]
        if not (labels == label).any():
            known = [f"{value:g}" for value in np.unique(labels[~np.isnan(labels)])]
            raise unknown(ConfigError, "label", f"{label:g}", known, where="examples")
        return examples.select(labels == label)

    def test_histories(self, users: int, *, seed: int = 0, skip: int = 0) -> list[History]:
        """Histories before the tested events of ``users`` users drawn by the seed, in their order.

        All users where there are fewer; the first example of a user who has several. The first
        ``skip`` users drawn are left out, so that a method can be chosen on some users and
        measured on others.
        """
        rows = self.split.test
        first = np.unique(rows.users, return_index=True)[1]
        drawn = np.random.default_rng(seed).permutation(len(first))[skip : skip + users]
        return [rows.history(int(first[place])) for place in sorted(drawn)]

    def report_facts(
        self,
        influences: pa.Table,
        metrics: Mapping[str, Sequence[Record]],
        *,
        log: BehaviorLog | None = None,
        users: int = 12,
        k: int = 10,
    ) -> ReportFacts:
        """What a report states beside the explanations.

        Args:
            influences: The influence table of the report.
            metrics: Records by head, as `compare_heads` returns them; may be empty.
            log: The explained log. Default: the run's own.
            users: Largest number of users shown one by one.
            k: Length of the lists of recommendations. A model whose item head was not trained
                recommends nothing.
        """
        model, rendering, source = self.config.model, self.config.rendering, self.config.data.source
        histories = _whole_histories(influences, log or self.split.log, users)
        recommends = histories if model.item_head.weight > 0 else []
        heads = [(name if len(metrics) > 1 else "", records) for name, records in metrics.items()]
        return ReportFacts(
            title="What made the model predict this?",
            model={
                "Data": Path(source).name if Path(source).suffix else source,
                "Backbone": _backbones(self.model, model),
                "Adapter": model.adapter.describe(),
                "Rendering": f"style {rendering.style}, template {rendering.template}",
                "Events read": f"the last {self.model.encoder.max_events}",
            },
            protocol=flat_facts({k: v for k, v in self.model.protocol.items() if k != "metrics"}),
            # With one relevant item a row, recall@K is HR@K: one column is enough for a reader.
            metrics=[
                {"head": head, **{k: v for k, v in record.items() if "recall@" not in k}}
                for head, records in heads
                for record in records
            ],
            recommendations={
                history.user_id: [
                    (item.title, item.probability) for item in self.model.recommend(history, k)
                ]
                for history in recommends
            },
            rules={
                history.user_id: [
                    change.to_text() for change in self.model.rule_changes(history, k)
                ]
                for history in histories
            },
            verdict=verdict(metrics.get("items", ()), self.config.evaluation.cutoff),
            learned=self._learned(recommends),
        )

    def _learned(self, histories: Sequence[History]) -> dict[str, list[str]]:
        """Lines of the training users behind each first recommendation; none without their file."""
        path = self.folder / FILE
        if not path.exists():
            return {}
        log = self.split.train
        gradients = TrainingGradients.load(path, self.model, log)
        return {
            history.user_id: training_influence(
                self.model, history, log=log, gradients=gradients
            ).lines()
            for history in histories
        }


def _device() -> torch.device:
    """The device of this process of a launcher, without opening a process group."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or on_cpu():
        return torch.device("cpu")
    return torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))


def _drawn(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Up to ``count`` of ``size`` places drawn by the seed, in order."""
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _whole_histories(table: pa.Table, log: BehaviorLog, users: int) -> list[History]:
    """Histories of the first users of a table that end where the user's history in the log ends.

    Others were explained before an example; what is recommended after the user's last event is no
    recommendation of that time.
    """
    last = table.group_by("user_id", use_threads=False).aggregate([("timestamp", "max")])
    ends = zip(last["user_id"].to_pylist()[:users], last["timestamp_max"].to_pylist(), strict=False)
    histories = [(log[user], end) for user, end in ends]
    return [history for history, end in histories if end == history.timestamps[-1]]


def _same_examples(one: Split, other: Split) -> bool:
    """Whether validation and test have the same events after the same histories."""
    return one.log.user_ids.equals(other.log.user_ids) and all(
        np.array_equal(ours, theirs)
        for a, b in ((one.validation, other.validation), (one.test, other.test))
        for ours, theirs in ((a.events, b.events), (a.target_items, b.target_items))
    )


def _backbones(model: InfluenceModel, config: ModelConfig) -> str:
    """The backbone, or the different ones of an ensemble."""
    if not isinstance(model, Ensemble):
        return _backbone(config)
    names = dict.fromkeys(_backbone(member.config) for member in model.models)
    return f"ensemble of {len(model.members)}: {', '.join(names)}"


def _backbone(model: ModelConfig) -> str:
    """The backbone and how much of it there is."""
    if model.backbone in OWN_BACKBONES:
        sizes = model.recurrent
        words = f", items read by {sizes.words}" if sizes.words else ""
        return f"{model.backbone}, {sizes.layers} x {sizes.width}{words}"
    return model.backbone + (f", its first {model.layers} layers" if model.layers else "")
