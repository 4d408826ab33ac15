"""Each head alone against all heads together, on the same split with the same configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.feedback_intervals import auc_draws
from benchmarks.harness import Scalar
from benchmarks.peers.click_settings import LIKED_FROM
from benchmarks.prediction.feedback_runs import OURS, FeedbackBench, read_seeds
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.bootstrap import percentiles, resampled_means
from llm_influence.evaluation.metrics import feedback_metrics, ndcg_of_rows

DRAWS = 2000
RUNS = {
    "items alone": ["--model.feedback_head.weight=0", "--evaluation.choose_by=ndcg"],
    "feedback alone": ["--model.item_head.weight=0"],
}
"""What is run beside ours, which learns both; each chooses its epoch by its own metric."""

Row = dict[str, Scalar]


@dataclass(frozen=True)
class Head:
    """One head's quality on test.

    Attributes:
        name: Of the head.
        alone: The system that has this head only.
        column: What a run leaves of it.
        metric: What is compared.
    """

    name: str
    alone: str
    column: str
    metric: str

    def value(self, rows: EvaluationSet, column: np.ndarray) -> float:
        """The metric of one run's (N,) column."""
        if self.column == "ranks":
            return float(ndcg_of_rows(column[None])[0].mean())
        liked = rows.target_values >= LIKED_FROM
        return feedback_metrics(liked, column, rows.users)["auc"]

    def draws(self, rows: EvaluationSet, column: np.ndarray) -> np.ndarray:
        """(draws,) of the metric, users drawn alike for every run."""
        if self.column == "ranks":
            gains = ndcg_of_rows(column[None])[0]
            return resampled_means([gains], rows.users, draws=DRAWS)[0]
        liked = rows.target_values >= LIKED_FROM
        return auc_draws(liked, column, rows.users, draws=DRAWS)


HEADS = (
    Head("items", "items alone", "ranks", "ndcg@10"),
    Head("feedback", "feedback alone", "scores", "auc"),
)


def run_joint(bench: FeedbackBench, config: Path, overrides: list[str], seeds: list[int]) -> None:
    """Run what `joint_rows` needs beside ours."""
    for name, words in RUNS.items():
        bench.ours(name, config, [*overrides, *words], seeds)


def joint_rows(bench: FeedbackBench, rows: EvaluationSet) -> Iterator[Row]:
    """Every head alone and together, and the ratio of the two with its interval over users.

    Nothing, where a run is missing.
    """
    for head in HEADS:
        alone = read_seeds(bench.folder / head.alone, head.column)[1]
        if not len(alone):
            continue
        pair = [alone, read_seeds(bench.folder / OURS, head.column)[1]]
        values = [[head.value(rows, column) for column in columns] for columns in pair]
        for name, found in zip(("alone", "together"), values, strict=True):
            yield _row(head, name, float(np.mean(found)), seeds=len(found))
        draws = [np.mean([head.draws(rows, c) for c in columns], axis=0) for columns in pair]
        ratio = float(np.mean(values[1]) / np.mean(values[0]))
        low, high = percentiles(draws[1] / draws[0])
        yield _row(head, "together against alone", ratio, low=low, high=high)


def _row(head: Head, system: str, value: float, **more: Scalar) -> Row:
    kind = f"{head.metric} ratio" if "against" in system else head.metric
    return {"system": f"{head.name} head {system}", "metric": kind, "value": value, **more}
