"""Runs of peers and of ours for one task: each a program on one core, each run once.

Every run has a folder with ``result.json``, which is written last. A finished run is not repeated,
unless it is a peer's run of another setting. Beside it are the answers to the examples, one number
each: ``validation_<column>.npy`` and ``test_<column>.npy``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.harness import ROOT
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.splits import Split
from llm_influence.errors import DataError
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.run import Run
from llm_influence.utils import write_text, write_whole

OURS = "llm_influence"
PEERS = ROOT / "benchmarks" / "peers"
COLUMNS = {"rank": "ranks", "feedback_score": "scores"}
"""Columns of `predict_rows` that are kept, and the file name of each."""

Settings = dict[str, object]
Result = dict[str, object]


def run_pinned(words: Sequence[str], folder: Path, core: int) -> None:
    """Run a program with one thread on one core; its output goes to ``log.txt`` of ``folder``.

    Raises:
        subprocess.CalledProcessError: The program failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            ["taskset", "-c", str(core), *words],  # noqa: S607
            check=True,
            env=os.environ | threads | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )


def finetune_pinned(
    config: Path, overrides: Sequence[str], folder: Path, seed: int, core: int
) -> Path:
    """Fine-tune ours on one core into ``folder``/model, unless that is done; the model folder.

    A run that was stopped begins anew: otherwise its seconds would not be those of one run.
    """
    model = folder / "model"
    if not (model / "metrics.json").exists():
        shutil.rmtree(model, ignore_errors=True)
        print(f"{OURS} {folder.name}", flush=True)
        words = [sys.executable, str(ROOT / "scripts" / "finetune.py"), "--config", str(config)]
        words += ["--output", str(model), "--train.seed", str(seed)]
        run_pinned([*words, *overrides], folder, core)
    return model


def make_environment(folder: Path, requirements: str) -> None:
    """Create the peers' virtual environment from a file of benchmarks/peers, unless it is there."""
    done = folder / "installed.txt"
    packages = (PEERS / requirements).read_text(encoding="utf-8")
    if done.exists() and done.read_text(encoding="utf-8") == packages:
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = ["-m", "pip", "install", "--only-binary", ":all:", "-r", str(PEERS / requirements)]
    subprocess.run([str(folder / "bin" / "python"), *install], check=True)
    done.write_text(packages, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Budget:
    """What each peer may spend, in seconds of training.

    Attributes:
        trials: Settings tried, at most.
        tuning_seconds: No trial begins after so many, all trials together.
        trial_seconds: A trial ends with the epoch in which they are over.
        final_seconds: The same for a run of the chosen setting.
        patience: Epochs without a better validation before a run stops.
    """

    trials: int
    tuning_seconds: float
    trial_seconds: float
    final_seconds: float
    patience: int

    def options(self) -> dict[str, object]:
        """Options of a benchmark's command; these values are the defaults."""
        return {name: (getattr(self, name), "of each peer") for name in self.__slots__}

    @classmethod
    def of(cls, options: argparse.Namespace) -> Budget:
        """The budget that the command line gives."""
        return cls(*(getattr(options, name) for name in cls.__slots__))


@dataclass(frozen=True, slots=True)
class Bench:
    """One task's folder and the means to run systems in it.

    Attributes:
        folder: Everything of the task; a system has a folder in it.
        core: The core that every run is pinned to.
        environment: The peers' virtual environment.
        programs: The program of each peer, a module of benchmarks/peers.
        metric: Measured on validation, more is better; settings are chosen by it.
        options: Further options of every peer's run.
        of_trials: Further words of the runs that try a setting.
    """

    folder: Path
    core: int
    environment: Path
    programs: Mapping[str, str]
    metric: str
    options: Mapping[str, object] = field(default_factory=dict)
    of_trials: tuple[str, ...] = ()

    @property
    def task(self) -> Path:
        """The folder of the exported split, which all systems read."""
        return self.folder / "task"

    def export(self, split: Split) -> None:
        """Write the split and the catalogue."""
        split.save(self.task)
        split.log.catalogue.save(self.task / "catalogue.parquet")
        print(json.dumps(split.description), flush=True)

    def split(self) -> Split:
        """The exported split."""
        return Split.load(self.task, Catalogue.load(self.task / "catalogue.parquet"))

    def tune(self, system: str, points: Iterable[Settings], budget: Budget) -> Settings:
        """Try settings on validation with seed 0 until the budget is spent; the best one."""
        spent, tried = 0.0, []
        limits = (budget.trial_seconds, budget.patience)
        for number, settings in enumerate(points):
            if number >= budget.trials or spent >= budget.tuning_seconds:
                break
            folder = self.folder / system / f"trial_{number:02d}"
            result = self._run(system, folder, settings, 0, *limits, self.of_trials)
            spent += float(str(result["train_seconds"]))
            tried.append(result)
        return max(tried, key=lambda result: result[f"validation_{self.metric}"])["settings"]

    def seeds(self, system: str, settings: Settings, seeds: Sequence[int], budget: Budget) -> None:
        """Train the chosen setting with every seed."""
        for seed in seeds:
            folder = self.folder / system / f"seed_{seed}"
            self._run(system, folder, settings, seed, budget.final_seconds, budget.patience)

    def _run(
        self,
        system: str,
        folder: Path,
        settings: Settings,
        seed: int,
        seconds: float,
        patience: int,
        more: tuple[str, ...] = (),
    ) -> Result:
        done = folder / "result.json"
        if not done.exists() or read_result(done)["settings"] != settings:
            print(f"{system} {folder.name}: {json.dumps(settings)}", flush=True)
            options = {
                "task": self.task.absolute(),
                "output": folder.absolute(),
                "settings": json.dumps(settings),
                "seed": seed,
                "max-seconds": seconds,
                "patience": patience,
                **self.options,
            }
            python = str(self.environment.absolute() / "bin" / "python")
            words = [python, "-m", f"benchmarks.peers.{self.programs[system]}"]
            words += [f"--{name}={value}" for name, value in options.items()]
            run_pinned([*words, *more], folder, self.core)
        result = read_result(done)
        quality, seconds = result[f"validation_{self.metric}"], result["train_seconds"]
        print(f"{system} {folder.name}: validation {quality:.4f}, {seconds:.0f} s", flush=True)
        return result

    def ours(
        self,
        config: Path,
        overrides: Sequence[str],
        seeds: Sequence[int],
        *,
        name: str = OURS,
        logged: str | None = None,
    ) -> None:
        """Fine-tune our model with every seed and keep its answers.

        Args:
            config: The configuration file.
            overrides: Options that follow it.
            seeds: One run each.
            name: Of the runs; the folder's name.
            logged: The bench's metric in the run's history; None: such a head is not trained.
        """
        for seed in seeds:
            folder = self.folder / name / f"seed_{seed}"
            if (folder / "result.json").exists():
                continue
            finetune_pinned(config, overrides, folder, seed, self.core)
            run = Run.open(folder / "model")
            check_same(self.task, folder / "model" / "split")
            for part, rows in (("validation", run.split.validation), ("test", run.split.test)):
                answers = predict_rows(run.model, rows, run.config.evaluation)
                for column, file in COLUMNS.items():
                    if column in answers:
                        save_column(folder, f"{part}_{file}", answers[column])
            metrics = read_result(folder / "model" / "metrics.json")
            result = curve(metrics, self.metric, logged) if logged else {}
            settings = run.config.model_dump(mode="json")
            save_result(folder, {"seed": seed, "settings": settings, **result})
            shutil.rmtree(folder / "model" / "checkpoints", ignore_errors=True)


def curve(metrics: Mapping[str, object], metric: str, logged: str) -> Result:
    """Seconds and curve of a run folder's ``metrics.json``, validations taken out.

    Every step costs alike, so an epoch's seconds are its share of all training seconds. The seconds
    of building the model, the fit of the memory among them, come before all.

    Args:
        metrics: The file's content.
        metric: What validation measured, as the result calls it; more is better.
        logged: The same in the run's history.
    """
    history = [entry for entry in metrics["history"] if logged in entry]
    seconds = metrics["seconds"] - sum(entry["eval_runtime"] for entry in history)
    last = history[-1]["epoch"]
    epochs = [
        {
            "epoch": entry["epoch"],
            "train_seconds": metrics["build_seconds"] + seconds * entry["epoch"] / last,
            metric: entry[logged],
        }
        for entry in history
    ]
    best = max(epochs, key=lambda epoch: epoch[metric])
    return {
        "best_epoch": best["epoch"],
        f"validation_{metric}": best[metric],
        "train_seconds": metrics["build_seconds"] + seconds,
        "train_seconds_to_best": best["train_seconds"],
        "wall_seconds": metrics["seconds"],
        "epochs": epochs,
    }


def check_same(exported: Path, ours: Path) -> None:
    """Refuse a run of ours on other events than the peers'.

    Raises:
        DataError: The two saved splits differ.
    """
    tables = [pq.read_table(folder / "split.parquet") for folder in (exported, ours)]
    if not tables[0].equals(tables[1]):
        raise DataError(
            "our run has another split than the peers",
            where=str(ours),
            expected=f"the events of {exported}",
            fix="export the split again with the configuration of our run, and repeat the peers",
        )


def save_column(folder: Path, name: str, values: np.ndarray) -> None:
    """Write one number an example to ``<name>.npy``."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, values)

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{name}.npy", write)


def save_result(folder: Path, result: Mapping[str, object]) -> None:
    """Write a run's ``result.json``, which makes it a finished one."""
    write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")


def read_result(path: Path) -> Result:
    """The record of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_trials(folder: Path) -> list[Result]:
    """Results of all trials of a system, in the order in which they were tried."""
    return [read_result(path) for path in sorted(folder.glob("trial_*/result.json"))]


def read_seeds(folder: Path, column: str) -> tuple[list[Result], np.ndarray]:
    """Results of a system's finished seeds, and its (S, N) answers to the test examples."""
    paths = sorted(folder.glob("seed_*/result.json"))
    columns = [np.load(path.with_name(f"test_{column}.npy")) for path in paths]
    return [read_result(path) for path in paths], np.stack(columns) if columns else np.empty((0, 0))
