"""Run the systems of scripts/benchmark_prediction.py, each on one core, each run once.

Every run has a folder with `result.json`, written last: a run that has one is not repeated, unless
it is a peer's run of another setting.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from peers.settings import PROGRAMS, Settings, points
from pinned import run_pinned

from llm_influence.config import EvaluationConfig, RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.sources import open_data
from llm_influence.data.splits import Split, split_log
from llm_influence.errors import DataError
from llm_influence.evaluation.baselines import ItemKNN, Popularity, best_item_knn
from llm_influence.evaluation.ranking import (
    ModelRecommender,
    Recommender,
    evaluate,
    ranking_metrics,
)
from llm_influence.files import write_text, write_whole
from llm_influence.run import Run

HERE = Path(__file__).resolve().parent
NDCG = "ndcg@10"
OURS = ModelRecommender.name
Result = dict[str, object]


@dataclass(frozen=True, slots=True)
class Budget:
    """What each peer may spend, in seconds of training.

    Attributes:
        trials: At most so many settings are tried.
        tuning_seconds: No trial begins after so many, all trials together.
        trial_seconds: A trial ends with the epoch in which they are over.
        final_seconds: The same for a run of the chosen setting.
        patience: Epochs without a better validation NDCG@10 before a run stops.
    """

    trials: int
    tuning_seconds: float
    trial_seconds: float
    final_seconds: float
    patience: int


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
        """Try settings on validation with seed 0 until the budget is spent; the best one."""
        spent, tried = 0.0, []
        for number, settings in enumerate(points(system, self.task)):
            if number >= budget.trials or spent >= budget.tuning_seconds:
                break
            folder = self.folder / system / f"trial_{number:02d}"
            result = self._peer(system, folder, settings, 0, budget.trial_seconds, budget.patience)
            spent += float(str(result["train_seconds"]))
            tried.append(result)
        best = max(tried, key=lambda result: result[f"validation_{NDCG}"])
        return best["settings"]

    def seeds(self, system: str, settings: Settings, seeds: list[int], budget: Budget) -> None:
        """Train the chosen setting with every seed."""
        for seed in seeds:
            folder = self.folder / system / f"seed_{seed}"
            self._peer(system, folder, settings, seed, budget.final_seconds, budget.patience)

    def _peer(
        self,
        system: str,
        folder: Path,
        settings: Settings,
        seed: int,
        seconds: float,
        patience: int,
    ) -> Result:
        done = folder / "result.json"
        if not done.exists() or read_result(done)["settings"] != settings:
            print(f"{system} {folder.name}: {json.dumps(settings)}", flush=True)
            program = HERE / "peers" / PROGRAMS[system]
            options = {
                "task": self.split,
                "output": folder,
                "settings": json.dumps(settings),
                "seed": seed,
                "max-seconds": seconds,
                "patience": patience,
                "repeats": int(self.repeats),
            }
            words = [str(self.environment / "bin" / "python"), str(program)]
            words += [f"--{name}={value}" for name, value in options.items()]
            run_pinned(words, folder, self.core)
        result = read_result(done)
        found, cost = float(str(result[f"validation_{NDCG}"])), float(str(result["train_seconds"]))
        print(f"{system} {folder.name}: validation {found:.4f}, {cost:.0f} s", flush=True)
        return result

    def ours(self, config: Path, overrides: list[str], seeds: list[int]) -> None:
        """Fine-tune our model with every seed and rank with it.

        A fine-tuning that was cut short begins anew: its seconds would not be those of one run.
        """
        for seed in seeds:
            folder = self.folder / OURS / f"seed_{seed}"
            if (folder / "result.json").exists():
                continue
            if not (folder / "model" / "metrics.json").exists():
                shutil.rmtree(folder / "model", ignore_errors=True)
                words = [sys.executable, str(HERE / "finetune.py"), "--config", str(config)]
                words += ["--output", str(folder / "model"), "--train.seed", str(seed)]
                run_pinned([*words, *overrides], folder, self.core)
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


def read_trials(folder: Path) -> list[Result]:
    """Results of all trials of a system, in the order in which they were tried."""
    return [read_result(path) for path in sorted(folder.glob("trial_*/result.json"))]


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


def read_result(path: Path) -> Result:
    """The record of a run."""
    return json.loads(path.read_text(encoding="utf-8"))
