"""Run the systems of benchmarks/prediction/next_item.py, each on one core, each run once.

Every run has a folder with `result.json`, written last: a run that has one is not repeated, unless
it is a peer's run of another setting.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.peer_runs import Budget, PeerRuns, Result, Settings, read_result
from benchmarks.peers.settings import PROGRAMS, points
from benchmarks.pinned import finetune_pinned
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.errors import DataError
from llm_influence.evaluation.baselines import ItemKNN, Popularity, best_item_knn
from llm_influence.evaluation.metrics import (
    ModelRecommender,
    Recommender,
    evaluate,
    ranking_metrics,
)
from llm_influence.run import Run
from llm_influence.utils import write_text, write_whole

NDCG = "ndcg@10"
OURS = ModelRecommender.name


@dataclass(frozen=True, slots=True)
class Bench:
    """One task's folder and the means to run things in it.

    Attributes:
        task: `ml100k`, `beauty` or `complete_journey`.
        folder: Everything of this task.
        core: The one core that every run is pinned to.
        environment: The peers' virtual environment.
        repeats: Whether items of a history are candidates.
    """

    task: str
    folder: Path
    core: int
    environment: Path
    repeats: bool = False

    @property
    def split(self) -> Path:
        """The folder of the exported split."""
        return self.folder / "task"

    def export(self, config: RunConfig) -> None:
        """Write the split and the catalogue that all systems read."""
        split = split_log(open_data(config.data), config.data.split)
        split.save(self.split)
        split.log.catalogue.save(self.split / "catalogue.parquet")
        print(json.dumps(split.description), flush=True)

    def tune(self, system: str, budget: Budget) -> Settings:
        """The best setting of a peer, see `PeerRuns.tune`."""
        return self._peers().tune(system, points(system, self.task), budget)

    def seeds(self, system: str, settings: Settings, seeds: list[int], budget: Budget) -> None:
        """Train the chosen setting with every seed."""
        self._peers().seeds(system, settings, seeds, budget)

    def _peers(self) -> PeerRuns:
        return PeerRuns(
            self.folder,
            self.split,
            self.core,
            self.environment,
            PROGRAMS,
            NDCG,
            options={"repeats": int(self.repeats)},
        )

    def ours(self, config: Path, overrides: list[str], seeds: list[int]) -> None:
        """Fine-tune our model with every seed and rank with it."""
        for seed in seeds:
            folder = self.folder / OURS / f"seed_{seed}"
            if not (folder / "result.json").exists():
                finetune_pinned(config, overrides, folder, seed, self.core)
                self._rank_ours(folder, seed)

    def _rank_ours(self, folder: Path, seed: int) -> None:
        """Write what a peer writes, from a run folder."""
        run = Run.open(folder / "model")
        check_same(self.split, folder / "model" / "split")
        metrics = read_result(folder / "model" / "metrics.json")
        for name, rows in (("validation", run.split.validation), ("test", run.split.test)):
            _, ranks = evaluate(ModelRecommender(run.model), rows, run.config.evaluation)
            save_ranks(folder, name, ranks)
        result = our_result(metrics) | {
            "seed": seed,
            "settings": run.config.model_dump(mode="json"),
        }
        write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")

    def baselines(self) -> None:
        """Popularity and item-kNN, in this process."""
        catalogue = Catalogue.load(self.split / "catalogue.parquet")
        split, config = (
            Split.load(self.split, catalogue),
            EvaluationConfig(exclude_seen=not self.repeats),
        )
        neighbours = best_item_knn(split.train, split.validation, config).neighbours
        makers = {
            "popularity": lambda: Popularity(split.train),
            "item-knn": lambda: ItemKNN(split.train, neighbours),
        }
        for name, make in makers.items():
            folder = self.folder / name / "seed_0"
            begun = time.process_time()
            recommender: Recommender = make()
            seconds = time.process_time() - begun
            for part, rows in (("validation", split.validation), ("test", split.test)):
                metrics, ranks = evaluate(recommender, rows, config)
                save_ranks(folder, part, ranks)
                print(name, part, metrics, flush=True)
            result = {
                "settings": {"neighbours": neighbours} if name == "item-knn" else {},
                "seed": 0,
                "train_seconds": seconds,
                "train_seconds_to_best": seconds,
                "epochs": [],
            }
            write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")


def our_result(metrics: Result, metric: str = NDCG, logged: str = f"eval_{NDCG}") -> Result:
    """Seconds and curve of a run folder's ``metrics.json``, validations taken out.

    Every step costs alike, so an epoch's seconds are its share of all training seconds.

    Args:
        metrics: The file's content.
        metric: What validation measured, as the result calls it; more is better.
        logged: The same in the run's history.
    """
    history = [entry for entry in metrics["history"] if logged in entry]
    validations = sum(entry["eval_runtime"] for entry in history)
    seconds = metrics["seconds"] - validations
    last = history[-1]["epoch"]
    epochs = [
        {
            "epoch": entry["epoch"],
            "train_seconds": seconds * entry["epoch"] / last,
            metric: entry[logged],
        }
        for entry in history
    ]
    best = max(epochs, key=lambda epoch: epoch[metric])
    return {
        "best_epoch": best["epoch"],
        f"validation_{metric}": best[metric],
        "train_seconds": seconds,
        "train_seconds_to_best": best["train_seconds"],
        "wall_seconds": metrics["seconds"],
        "epochs": epochs,
    }


def save_ranks(folder: Path, name: str, ranks: np.ndarray) -> None:
    """Write (N,) ranks where a peer would."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, ranks.astype(np.int64))

    write_whole(folder / f"{name}_ranks.npy", write)


def read_runs(folder: Path) -> list[tuple[Result, np.ndarray]]:
    """Result and test ranks of every finished seed of a system."""
    return [
        (read_result(path), np.load(path.with_name("test_ranks.npy")))
        for path in sorted(folder.glob("seed_*/result.json"))
    ]


def metrics_of(ranks: np.ndarray) -> dict[str, float]:
    """HR@10, NDCG@10 and MRR, computed in one place for every system."""
    return ranking_metrics(ranks, 10)


def check_same(exported: Path, ours: Path) -> None:
    """Refuse a run of ours on other events than the peers'.

    Raises:
        DataError: The two saved splits differ.
    """
    tables = [pq.read_table(folder / "split.parquet") for folder in (exported, ours)]
    if not tables[0].equals(tables[1]):
        raise DataError(
            "our run saw another split than the peers",
            where=str(ours),
            expected=f"the events of {exported}",
            fix="export the split again with the configuration of our run, and repeat the peers",
        )
