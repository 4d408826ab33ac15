"""Peers tuned on validation and trained with every seed: each run a program, each on one core.

Every run has a folder with `result.json`, written last: a run that has one is not repeated, unless
it is one of another setting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.pinned import run_pinned

Settings = dict[str, object]
Result = dict[str, object]


@dataclass(frozen=True, slots=True)
class Budget:
    """What each peer may spend, in seconds of training.

    Attributes:
        trials: At most so many settings are tried.
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

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Make options of a benchmark's command, these values being the defaults."""
        seconds = {"type": float, "help": "of training"}
        text = "settings tried of a peer, at most"
        parser.add_argument("--trials", type=int, default=self.trials, help=text)
        parser.add_argument("--tuning-seconds", default=self.tuning_seconds, **seconds)
        parser.add_argument("--trial-seconds", default=self.trial_seconds, **seconds)
        parser.add_argument("--final-seconds", default=self.final_seconds, **seconds)
        parser.add_argument("--patience", type=int, default=self.patience)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Budget:
        """What the options of `add_to` say."""
        return cls(
            options.trials,
            options.tuning_seconds,
            options.trial_seconds,
            options.final_seconds,
            options.patience,
        )


@dataclass(frozen=True, slots=True)
class PeerRuns:
    """Runs of peers for one task.

    Attributes:
        folder: Everything of the task; a system has a folder in it.
        task: What the programs read.
        core: The one core that every run is pinned to.
        environment: The peers' virtual environment.
        programs: The program of each system, a module of benchmarks/peers.
        metric: What validation measured, more is better; the settings are chosen by it.
        options: Further options of every run.
        of_trials: Further words of the runs that try a setting.
    """

    folder: Path
    task: Path
    core: int
    environment: Path
    programs: Mapping[str, str]
    metric: str
    options: Mapping[str, object] = field(default_factory=dict)
    of_trials: tuple[str, ...] = ()

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

    def seeds(self, system: str, settings: Settings, seeds: list[int], budget: Budget) -> None:
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
                "task": self.task,
                "output": folder,
                "settings": json.dumps(settings),
                "seed": seed,
                "max-seconds": seconds,
                "patience": patience,
                **self.options,
            }
            program = f"benchmarks.peers.{self.programs[system]}"
            words = [str(self.environment.absolute() / "bin" / "python"), "-m", program]
            words += [f"--{name}={value}" for name, value in options.items()]
            run_pinned([*words, *more], folder, self.core)
        result = read_result(done)
        found, cost = result[f"validation_{self.metric}"], result["train_seconds"]
        print(f"{system} {folder.name}: validation {found:.4f}, {cost:.0f} s", flush=True)
        return result


def read_result(path: Path) -> Result:
    """The record of a run."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_trials(folder: Path) -> list[Result]:
    """Results of all trials of a system, in the order in which they were tried."""
    return [read_result(path) for path in sorted(folder.glob("trial_*/result.json"))]
