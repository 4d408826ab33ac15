"""Run the systems of benchmarks/prediction/feedback.py, each on one core, each run once.

Every run has a folder with `result.json`, written last: a run that has one is not repeated, unless
it is a peer's run of another setting. Beside it are the log-odds of the examples, in their order:
`validation_scores.npy`, and of a run of the chosen setting `test_scores.npy`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peer_runs import Budget, PeerRuns, Result, Settings, read_result
from benchmarks.peers.click_settings import LIKED_FROM, PROGRAMS, points
from benchmarks.pinned import finetune_pinned
from benchmarks.prediction.feedback_baselines import REFERENCES
from benchmarks.prediction.next_item_runs import check_same, our_result
from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.errors import ConfigError
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.evaluation.metrics import feedback_metrics
from llm_influence.run import Run
from llm_influence.utils import write_text, write_whole

OURS = "llm_influence"
AUC = "auc"
Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class FeedbackBench:
    """The task's folder and the means to run things in it.

    Attributes:
        folder: Everything of the task.
        core: The one core that every run is pinned to.
        environment: The peers' virtual environment.
    """

    folder: Path
    core: int
    environment: Path

    @property
    def task(self) -> Path:
        """The folder of the export."""
        return self.folder / "task"

    def export(self, config: RunConfig) -> None:
        """Write the split, the catalogue and the examples that all systems are asked.

        Raises:
            ConfigError: The configuration asks something else than whether a film is liked.
        """
        head = config.model.feedback_head
        asked = (head.label, head.positive_from) == ("value", LIKED_FROM)
        if head.kind == "regression" or not asked:
            raise ConfigError(
                f"the head is {head.kind} of {head.label} from {head.positive_from:g}",
                where="model.feedback_head",
                expected=f"binary or ordinal, of value from {LIKED_FROM:g}, as the peers are asked",
                fix="give benchmark_feedback.py a configuration with this head",
            )
        split = split_log(open_data(config.data), config.data.split)
        split.save(self.task)
        split.log.catalogue.save(self.task / "catalogue.parquet")
        table = questions_of(split)
        write_whole(self.task / "examples.parquet", lambda part: pq.write_table(table, part))
        print(json.dumps(split.description), flush=True)

    def split(self) -> Split:
        """The exported split."""
        return Split.load(self.task, Catalogue.load(self.task / "catalogue.parquet"))

    def references(self) -> None:
        """Means and biases, in this process; validation chooses how far they are shrunk."""
        split = self.split()
        for name, make in REFERENCES.items():
            folder = self.folder / name / "seed_0"
            begun = time.process_time()
            tried = [(shrinkage, make(split, shrinkage)) for shrinkage in (1.0, 3.0, 10.0, 30.0)]
            seconds = time.process_time() - begun
            quality = [
                measure(split.validation, score(split.validation))[AUC] for _, score in tried
            ]
            shrinkage, score = tried[int(np.argmax(quality))]
            for part, rows in (("validation", split.validation), ("test", split.test)):
                save_column(folder, f"{part}_scores", score(rows))
            result = {
                "settings": {"shrinkage": shrinkage},
                "seed": 0,
                f"validation_{AUC}": max(quality),
                "train_seconds": seconds,
                "epochs": [],
            }
            write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
            print(f"{name}: validation {max(quality):.4f}", flush=True)

    def tune(self, system: str, budget: Budget) -> Settings:
        """The best setting of a peer, see `PeerRuns.tune`; test is not asked."""
        return self._peers().tune(system, points(system), budget)

    def seeds(self, system: str, settings: Settings, seeds: list[int], budget: Budget) -> None:
        """Train the chosen setting with every seed."""
        self._peers().seeds(system, settings, seeds, budget)

    def _peers(self) -> PeerRuns:
        return PeerRuns(
            self.folder,
            self.task,
            self.core,
            self.environment,
            PROGRAMS,
            AUC,
            of_trials=("--no-test",),
        )

    def ours(self, name: str, config: Path, overrides: list[str], seeds: list[int]) -> None:
        """Fine-tune our model with every seed and ask it everything.

        Args:
            name: What the runs are called; the folder's name.
            config: The configuration file.
            overrides: Options that follow it.
            seeds: One run each.
        """
        for seed in seeds:
            folder = self.folder / name / f"seed_{seed}"
            if not (folder / "result.json").exists():
                finetune_pinned(config, overrides, folder, seed, self.core)
                self._ask_ours(folder, seed)

    def _ask_ours(self, folder: Path, seed: int) -> None:
        """Write what a peer writes, and the ranks of an item head, from a run folder."""
        run = Run.open(folder / "model")
        check_same(self.task, folder / "model" / "split")
        result: Result = {"seed": seed, "settings": run.config.model_dump(mode="json")}
        for part, rows in (("validation", run.split.validation), ("test", run.split.test)):
            found = predict_rows(run.model, rows, run.config.evaluation)
            for column, name in (("feedback_score", "scores"), ("rank", "ranks")):
                if column in found:
                    save_column(folder, f"{part}_{name}", found[column])
        if run.model.feedback_head is not None:
            metrics = read_result(folder / "model" / "metrics.json")
            result |= our_result(metrics, AUC, f"eval_feedback_{AUC}")
        write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
        shutil.rmtree(folder / "model" / "checkpoints", ignore_errors=True)


def questions_of(split: Split) -> pa.Table:
    """Every event but a user's first, with its user, position, item, label and part.

    A question's history is every event of the user before ``position``.
    """
    log, positions = split.log, split.log.positions()
    parts = np.array(["train", "validation", "test", "rest"])[split.parts()]
    asked = (positions > 0) & (parts != "rest")
    return pa.table(
        {
            "user": log.rows_of_users()[asked],
            "position": positions[asked],
            "item": log.items[asked],
            "label": log.values[asked] >= LIKED_FROM,
            "part": parts[asked],
        }
    )


def measure(rows: EvaluationSet, scores: np.ndarray) -> dict[str, float]:
    """AUC, GAUC, log loss, calibration error and Brier score of (N,) log-odds."""
    return feedback_metrics(rows.target_values >= LIKED_FROM, scores, rows.users)


def save_column(folder: Path, name: str, values: np.ndarray) -> None:
    """Write one number a question to ``<name>.npy``."""

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, values)

    write_whole(folder / f"{name}.npy", write)


def read_seeds(folder: Path, column: str = "scores") -> tuple[list[Result], np.ndarray]:
    """Results of a system's finished seeds and the (S, N) column of its test examples."""
    paths = sorted(folder.glob("seed_*/result.json"))
    found = [np.load(path.with_name(f"test_{column}.npy")) for path in paths]
    return [read_result(path) for path in paths], np.stack(found) if found else np.empty((0, 0))
