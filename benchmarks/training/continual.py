"""A continual fine-tuning on MovieLens-100K cut by time: what is gained on the new period, what is forgotten.

    python -m benchmarks.training.continual [--output runs/warm_update] [--seeds 0 1 2] [--cut 0.7]

A run is trained on what was before the moment; films that nobody had rated by then are not in its
catalogue. Then four ways lead to the new period: no update (new films join by text alone), an
update without replay, one with replay, and a model trained anew on everything. All four answer the
same examples. Goes on where it was broken off: what is measured is not trained again.
Writes docs/benchmarks/warm_update.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.harness import Scalar, write_benchmark
from llm_influence.config.run import RunConfig
from llm_influence.data.holdouts import Periods, part_periods
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, iso, moment_of
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.bootstrap import bootstrap_interval
from llm_influence.evaluation.metrics import ModelRecommender, evaluate, ndcg_of_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.training.continual import (
    open_newer,
    prepare,
    update,
    update_config,
    update_trainer,
)
from llm_influence.training.finetune import finetune
from llm_influence.utils import write_text

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
        """What the first run knows."""
        return str(self.folder / "early.parquet"), str(self.folder / "early_items.parquet")

    @property
    def whole(self) -> tuple[str, str]:
        """What there is at the update."""
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
    words += ["--output", str(options.output / f"seed_{seed}" / "base")]
    return RunConfig.load(options.config, words)


def way_config(
    options: argparse.Namespace, files: Files, seed: int, way: str, epochs: float
) -> RunConfig:
    """The configuration of one way into the new period."""
    place, (log, items) = options.output / f"seed_{seed}", files.whole
    words = ["--train.epochs", str(epochs), "--update.replay"]
    words.append(str(options.replay if way == REPLAY else 0.0))
    output = place / way.replace(" ", "_")
    return update_config(place / "base", output, log=log, items=items, overrides=words)


def periods_of(base: Path, config: RunConfig) -> Periods:
    """The examples of both periods; the same for every way and seed."""
    catalogue = InfluenceModel.from_pretrained(base).catalogue
    before = Split.load(base / "split", catalogue)
    return part_periods(before, open_newer(config), None, config.data.split)


def no_update(base: Path, config: RunConfig, periods: Periods) -> tuple[InfluenceModel, float]:
    """The first run, to which new films are added by their text."""
    model = InfluenceModel.from_pretrained(base)
    prepare(model, periods)
    return model, 0.0


def updated(base: Path, config: RunConfig, periods: Periods) -> tuple[InfluenceModel, float]:
    """`llm-influence update`."""
    seconds = update(base, config, open_newer(config)).seconds
    return InfluenceModel.from_pretrained(config.output), seconds


def retrained(base: Path, config: RunConfig, periods: Periods) -> tuple[InfluenceModel, float]:
    """A new model on all that the first run was trained on and all that an update is."""
    split = periods.split
    model = InfluenceModel.build(config, split.train, cache=Path(config.output).parent / "texts")
    trainer = update_trainer(model, periods, config, share=1)
    begun = time.perf_counter()
    trainer.train()
    return trainer.influence_model.cpu().eval(), time.perf_counter() - begun


WAYS: dict[str, Callable[[Path, RunConfig, Periods], tuple[InfluenceModel, float]]] = {
    NONE: no_update,
    PLAIN: updated,
    REPLAY: updated,
    ANEW: retrained,
}


def measure(options: argparse.Namespace, files: Files, seed: int, way: str) -> None:
    """Train one way with one seed and write its ranks, unless they are there."""
    base = options.output / f"seed_{seed}" / "base"
    epochs = options.epochs if way == ANEW else options.update_epochs
    config = way_config(options, files, seed, way, epochs)
    folder = Path(config.output)
    if (folder / "result.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # cut short: its seconds would not be one run's
    periods = periods_of(base, config)
    model, seconds = WAYS[way](base, config, periods)
    found: dict[str, object] = {"seconds": seconds}
    for name, rows in zip(PERIODS, (periods.old, periods.split.test), strict=True):
        found[name] = [int(rank) for rank in ranks_of(model, rows, config)]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "result.json", json.dumps(found) + "\n")
    print(f"seed {seed}, {way}: {describe(found)}, {seconds:.0f} s", flush=True)


def ranks_of(model: InfluenceModel, rows: EvaluationSet, config: RunConfig) -> np.ndarray:
    """(N,) ranks among all items, old and new."""
    return evaluate(ModelRecommender(model), rows, config.evaluation)[1]


def describe(found: dict) -> str:
    """NDCG@10 of both periods."""
    return ", ".join(f"{p} {ndcg_of_rows(np.array(found[p])).mean():.4f}" for p in PERIODS)


def train_base(options: argparse.Namespace, files: Files, seed: int) -> None:
    """The run on the old period, unless it is finished."""
    config = base_config(options, files, seed)
    if (Path(config.output) / "metrics.json").exists():
        return
    shutil.rmtree(config.output, ignore_errors=True)
    result = finetune(config)
    print(f"seed {seed}, the old period's run: {result.validation}", flush=True)


def read(options: argparse.Namespace, way: str) -> dict[str, np.ndarray]:
    """(seeds, N) NDCG@10 of every question by period, and (seeds,) seconds."""
    places = [options.output / f"seed_{seed}" / way.replace(" ", "_") for seed in options.seeds]
    found = [json.loads((p / "result.json").read_text(encoding="utf-8")) for p in places]
    scores = {p: np.stack([ndcg_of_rows(np.array(f[p])) for f in found]) for p in PERIODS}
    return scores | {"seconds": np.array([f["seconds"] for f in found])}


def rows_of(scores: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Scalar]]:
    """A row a way and period, and what replay and no update make of the plain update."""
    rows: list[dict[str, Scalar]] = []
    for way, found in scores.items():
        for period in PERIODS:
            asked = found[period].mean(axis=0)  # over seeds, a number a question
            low, high = bootstrap_interval(asked, np.arange(len(asked)))
            row = {"system": way, "task": f"{period} period", "metric": "ndcg@10"}
            value = {"value": float(asked.mean()), "low": low, "high": high}
            rows.append({**row, **value, "seconds": float(found["seconds"].mean())})
    for way in (NONE, REPLAY, ANEW):
        for period in PERIODS:
            change = (scores[way][period] - scores[PLAIN][period]).mean(axis=0)
            low, high = bootstrap_interval(change, np.arange(len(change)))
            row = {"system": f"{way} - {PLAIN}", "task": f"{period} period"}
            value = {"value": float(change.mean()), "low": low, "high": high}
            rows.append({**row, "metric": "difference of ndcg@10", **value})
    return rows


def main(options: argparse.Namespace) -> None:
    """Train every way with every seed, measure, write."""
    torch.set_num_threads(options.threads)
    log = open_data(RunConfig.load(options.config).data)
    if options.users:
        log = log.select(log.user_ids[: options.users].to_pylist())
    moment = moment_of(options.cut, log, "--cut")
    files = write_files(log, moment, options.output / "data")
    for seed in options.seeds:
        train_base(options, files, seed)
        for way in WAYS:
            measure(options, files, seed, way)
    config = way_config(options, files, options.seeds[0], REPLAY, options.update_epochs)
    periods = periods_of(options.output / f"seed_{options.seeds[0]}" / "base", config)
    scores = {way: read(options, way) for way in WAYS}
    rows = rows_of(scores)
    for row in rows:
        print(row)
    figures = {
        f"{name}_{way.replace(' ', '_')}": float(found[key].mean())
        for way, found in scores.items()
        for name, key in (("ndcg10_old", "old"), ("ndcg10_new", "new"), ("seconds", "seconds"))
    }
    write_benchmark(
        options.write,
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
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/movielens_100k.yaml"))
    parser.add_argument("--output", type=Path, default=Path("runs/warm_update"))
    parser.add_argument("--write", type=Path, default=Path("docs/benchmarks/warm_update.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cut", type=float, default=0.7)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--update-epochs", type=float, default=2)
    parser.add_argument("--replay", type=float, default=0.5)
    parser.add_argument("--users", type=int, default=None, help="for a trial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    main(parser.parse_args())
