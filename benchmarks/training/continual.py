"""Continual fine-tuning on MovieLens-100K cut by time: gain on the new period, loss on the old.

    python -m benchmarks.training.continual [--seeds 0 1 2] [--cut 0.7]

A run is trained on the events before the cut; films without a rating by then are not in its
catalogue. Four ways lead to the new period: no update (new films join by text), an update without
replay, one with replay, and a new model trained on everything. All four predict the same examples.
Writes docs/benchmarks/warm_update.json.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.harness import Row, arguments, results_of, started, write_benchmark
from benchmarks.training_runs import MOVIELENS, open_log, ranks_of, with_interval
from llm_influence.config.run import RunConfig
from llm_influence.data.holdouts import PeriodSplit, split_periods
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import Split
from llm_influence.data.times import iso, moment_of
from llm_influence.evaluation.metrics import ndcg_of_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.continual import (
    open_newer,
    prepare,
    update,
    update_config,
    update_trainer,
)
from llm_influence.training.finetune import finetune

PARSER = arguments(
    __doc__,
    "warm_update",
    seeds=(0, 1, 2),
    threads=None,
    config=MOVIELENS,
    cut=0.7,
    epochs=5.0,
    update_epochs=2.0,
    replay=0.5,
    users=(int, "the first so many only, for a trial"),
)

NONE, PLAIN, REPLAY, ANEW = (
    "no update",
    "update without replay",
    "update with replay",
    "retrained on everything",
)
PERIODS = ("old", "new")


@dataclass(frozen=True, slots=True)
class Files:
    """The log up to the moment, the whole log, and their item tables."""

    folder: Path

    @property
    def early(self) -> tuple[str, str]:
        """The log and the items of the first run."""
        return str(self.folder / "early.parquet"), str(self.folder / "early_items.parquet")

    @property
    def whole(self) -> tuple[str, str]:
        """The log and the items of an update."""
        return str(self.folder / "whole.parquet"), str(self.folder / "whole_items.parquet")


def write_files(log: BehaviorLog, moment: int, folder: Path) -> Files:
    """Write both logs, with the items that occur in each."""
    folder.mkdir(parents=True, exist_ok=True)
    files, table = Files(folder), log.to_table()
    early = table.filter(pc.less(table["timestamp"], moment))
    for events, (log_file, item_file) in ((early, files.early), (table, files.whole)):
        items = log.catalogue.table
        known = pc.is_in(items["item_id"], value_set=pc.unique(events["item_id"]))
        pq.write_table(events, log_file)
        pq.write_table(items.filter(known), item_file)
    return files


def base_config(options: argparse.Namespace, files: Files, seed: int) -> RunConfig:
    """The shipped configuration on the early log."""
    source, items = files.early
    words = ["--data.source", source, "--data.items", items, "--train.seed", str(seed)]
    words += ["--train.epochs", str(options.epochs)]
    words += ["--output", str(options.work / f"seed_{seed}" / "base")]
    return RunConfig.load(options.config, words)


def way_config(options: argparse.Namespace, files: Files, seed: int, way: str) -> RunConfig:
    """The configuration of one way into the new period."""
    place, (log, items) = options.work / f"seed_{seed}", files.whole
    epochs = options.epochs if way == ANEW else options.update_epochs
    replay = options.replay if way == REPLAY else 0.0
    words = ["--train.epochs", str(epochs), "--update.replay", str(replay)]
    output = place / way.replace(" ", "_")
    return update_config(place / "base", output, log=log, items=items, overrides=words)


def periods_of(base: Path, config: RunConfig) -> PeriodSplit:
    """The examples of both periods; the same for every way and seed."""
    catalogue = InfluenceModel.from_pretrained(base).catalogue
    before = Split.load(base / "split", catalogue)
    return split_periods(before, open_newer(config), None, config.data.split)


def no_update(base: Path, config: RunConfig, periods: PeriodSplit) -> tuple[InfluenceModel, float]:
    """The first run, to which new films are added by their text."""
    model = InfluenceModel.from_pretrained(base)
    prepare(model, periods)
    return model, 0.0


def updated(base: Path, config: RunConfig, periods: PeriodSplit) -> tuple[InfluenceModel, float]:
    """As `llm-influence update` does."""
    seconds = update(base, config, open_newer(config)).seconds
    return InfluenceModel.from_pretrained(config.output), seconds


def retrained(base: Path, config: RunConfig, periods: PeriodSplit) -> tuple[InfluenceModel, float]:
    """A new model on all that the first run was trained on and all that an update is."""
    split = periods.split
    model = InfluenceModel.build(config, split.train, cache=Path(config.output).parent / "texts")
    trainer = update_trainer(model, periods, config, share=1)
    begun = time.perf_counter()
    trainer.train()
    return trainer.influence_model.cpu().eval(), time.perf_counter() - begun


WAYS: dict[str, Callable[[Path, RunConfig, PeriodSplit], tuple[InfluenceModel, float]]] = {
    NONE: no_update,
    PLAIN: updated,
    REPLAY: updated,
    ANEW: retrained,
}


def measure(base: Path, config: RunConfig, way: str) -> dict[str, object]:
    """Train one way with one seed; ranks of the examples of both periods, and seconds."""
    shutil.rmtree(config.output, ignore_errors=True)  # a stopped run has no seconds
    periods = periods_of(base, config)
    model, seconds = WAYS[way](base, config, periods)
    rows = dict(zip(PERIODS, (periods.old, periods.split.test), strict=True))
    ranks = {name: ranks_of(model, own, config).tolist() for name, own in rows.items()}
    return {"seconds": seconds, **ranks}


def train_base(config: RunConfig) -> None:
    """The run on the old period, unless it is finished."""
    if not (Path(config.output) / "metrics.json").exists():
        shutil.rmtree(config.output, ignore_errors=True)
        print(f"the old period's run: {finetune(config).validation}", flush=True)


def rows_of(scores: dict[str, dict[str, np.ndarray]], seconds: dict[str, float]) -> list[Row]:
    """A row a way and period, and the difference of each other way from the plain update."""
    rows: list[Row] = []
    for period in PERIODS:
        for way, own in scores.items():
            values = own[period].mean(axis=0)  # over seeds, a number an example
            row: Row = {"system": way, "task": f"{period} period", "metric": "ndcg@10"}
            value = with_interval(values, np.arange(len(values)))
            rows.append({**row, **value, "seconds": seconds[way]})
        for way in (NONE, REPLAY, ANEW):
            change = (scores[way][period] - scores[PLAIN][period]).mean(axis=0)
            row = {"system": f"{way} - {PLAIN}", "task": f"{period} period"}
            value = with_interval(change, np.arange(len(change)))
            rows.append({**row, "metric": "difference of ndcg@10", **value})
    return rows


def main(options: argparse.Namespace) -> None:
    """Train every way with every seed, measure, write."""
    log = open_log(RunConfig.load(options.config), options.users)
    moment = moment_of(options.cut, log.timestamps, "--cut")
    files = write_files(log, moment, options.work / "data")
    names = ("cut", "epochs", "update_epochs", "replay", "users")
    results = results_of(options, **{name: getattr(options, name) for name in names})
    measured: dict[str, list[dict]] = {way: [] for way in WAYS}
    for seed in options.seeds:
        config = base_config(options, files, seed)
        train_base(config)
        for way in WAYS:
            own = way_config(options, files, seed, way)
            found = results.keep(
                f"{way}, seed {seed}",
                lambda base=Path(config.output), own=own, way=way: measure(base, own, way),
            )
            measured[way].append(found)
    first = options.work / f"seed_{options.seeds[0]}" / "base"
    periods = periods_of(first, way_config(options, files, options.seeds[0], REPLAY))
    scores = {
        way: {p: np.stack([ndcg_of_rows(np.array(run[p])) for run in runs]) for p in PERIODS}
        for way, runs in measured.items()
    }
    seconds = {way: float(np.mean([r["seconds"] for r in runs])) for way, runs in measured.items()}
    figures: Row = {}
    for way in WAYS:
        key = way.replace(" ", "_")
        figures |= {
            f"ndcg10_{period}_{key}": float(scores[way][period].mean()) for period in PERIODS
        }
        figures[f"seconds_{key}"] = seconds[way]
    write_benchmark(
        options.output,
        name="warm_update",
        protocol={
            "data": f"movielens_100k, {len(log)} users, cut at {iso(moment)}: the first "
            f"{options.cut:.0%} of all events are old",
            "old_period": "a user's last old event, kept back from all training",
            "old_questions": len(periods.old),
            "new_period": "a user's last event, if it is new; the one before it validates",
            "new_questions": len(periods.split.test),
            "new_events_taught": int((periods.split.train.lengths - periods.known).clip(0).sum()),
            "new_items": len(periods.added),
            "candidates": "all items, old and new, but those of the history",
            "epoch": "chosen on the new period's validation examples; the first run's on its own",
            "replay": f"{options.replay:g} of the windows of an epoch are old, drawn once",
            "retrained": "from the untuned backbone, on all old windows and all new ones",
            "epochs": f"first run and retraining {options.epochs:g}, "
            f"update {options.update_epochs:g}",
            "interval": "95%, bootstrap over users of the mean over seeds; differences are paired",
            "seconds": "of training, validations included; mean over seeds",
        },
        rows=rows_of(scores, seconds),
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER))
