"""Complete Journey beside its peers: complete_journey_category.json and _redemption.json.

    python -m benchmarks.domains.complete_journey --stage category|redemption

Finished runs are not repeated. docs/tutorials/retail.md says what is equal for all systems.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.comparison import INTERVAL, System, of_means, of_ranks, of_scores, report
from benchmarks.domains.redemption_tree import GRID, features, fit
from benchmarks.harness import OUTPUT, Row, arguments, started, write_benchmark
from benchmarks.peer_runs import (
    OURS,
    Bench,
    Budget,
    make_environment,
    read_result,
    read_seeds,
    save_column,
    save_result,
)
from benchmarks.peers.settings import RANKING, points
from benchmarks.prediction.next_item import NDCG, baselines
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.public import open_data
from llm_influence.evaluation.metrics import evaluate, ndcg_of_rows
from llm_influence.types import History

TREE = "gradient-boosted tree"
BUDGET = Budget(8, tuning_seconds=400.0, trial_seconds=100.0, final_seconds=200.0, patience=4)
PARSER = arguments(
    __doc__,
    "complete_journey",
    seeds=(0, 1, 2),
    stage={"choices": ("category", "redemption"), "required": True},
    environment=(Path(".peers"), "the peers' virtual environment"),
    pin=(0, "the core that runs are pinned to"),
    **BUDGET.options(),
)


class OwnFrequency:
    """How often the household had each item in its history; popularity orders the rest."""

    name = "own frequency"

    def __init__(self, train: BehaviorLog) -> None:
        counts = np.bincount(train.items, minlength=len(train.catalogue))
        self._popularity = torch.from_numpy(counts / (counts.sum() + 1)).float()

    def scores(self, histories: Sequence[History]) -> Tensor:
        """(B, I) counts."""
        size = len(self._popularity)
        counts = [np.bincount(history.items, minlength=size) for history in histories]
        return torch.from_numpy(np.stack(counts)).float() + self._popularity


def category(options: argparse.Namespace, config_file: Path, config: RunConfig) -> None:
    """NDCG@10 of the next visit's main category."""
    bench = Bench(
        options.work / "category", options.pin, options.environment, RANKING, NDCG, {"repeats": 1}
    )
    bench.export(split_log(open_data(config.data), config.data.split))
    make_environment(options.environment, "requirements.txt")
    budget = Budget.of(options)
    setting = bench.tune("gru4rec", points("gru4rec", "complete_journey"), budget)
    bench.seeds("gru4rec", setting, options.seeds, budget)
    if not (bench.folder / "popularity" / "seed_0" / "result.json").exists():
        baselines(bench, repeats=True)
    bench.ours(config_file, options.overrides, options.seeds, logged=f"eval_{NDCG}")
    split = bench.split()
    users = split.test.users

    def ranked(name: str) -> System:
        runs, ranks = read_seeds(bench.folder / name, "ranks")
        return of_ranks(name, ranks, users, lambda row: {NDCG: ndcg_of_rows(row).mean()}, runs=runs)

    own = evaluate(OwnFrequency(split.train), split.test, EvaluationConfig(exclude_seen=False))[1]
    systems = [ranked(name) for name in (OURS, "gru4rec", "item-knn", "popularity")]
    systems.append(of_means(OwnFrequency.name, ndcg_of_rows(own)[None], users, NDCG))
    rows, figures, best = report(systems, NDCG, folder=bench.folder)
    write(
        options,
        rows,
        figures | {"gru4rec_value": systems[1].mean(NDCG)},
        {
            "question": "a household stands in the shop: which category takes most money of this "
            "visit? Candidates: all items of the catalogue, those of the history included",
            "trained_on": "the events before the first cut, contacts and redemptions included, by "
            "every system; ours also reads behaviours, dollars, times, demographics and how long "
            "ago the last event was",
            "epoch": f"chosen on validation {NDCG} by every system; test is used once",
            "tuning": f"GRU4Rec: at most {options.trials} settings on validation, seed 0; "
            "item-kNN: its neighbours; ours: the configuration as it stands",
            "best_peer": best.name,
            "data": dict(split.description),
        },
    )


def redemption(options: argparse.Namespace, config_file: Path, config: RunConfig) -> None:
    """AUC of a redemption within 14 days of a contact."""
    bench = Bench(options.work / "redemption", options.pin, options.environment, {}, "auc")
    bench.export(split_log(open_data(config.data), config.data.split))
    split = bench.split()
    known = ~np.isnan(_labels(split.test))
    labels, users = _labels(split.test)[known].astype(np.int64), split.test.users[known]
    bench.ours(config_file, options.overrides, options.seeds, logged="eval_feedback_auc")
    tree(bench, split, options.seeds)

    def scored(name: str, scores: np.ndarray, **more: object) -> System:
        return of_scores(
            name, scores, labels, users, lambda row: {"auc": _auc(labels, row)}, **more
        )

    systems = []
    for name in (OURS, TREE):
        runs, scores = read_seeds(bench.folder / name, "scores")
        systems.append(scored(name, scores[:, known], runs=runs))
    systems.append(scored("redemptions before", _redeemed_before(split.test)[None, known]))
    rows, figures, best = report(systems, "auc", folder=bench.folder)
    parts = {"train": split.train.labels}
    parts |= {"validation": _labels(split.validation), "test": _labels(split.test)}
    write(
        options,
        rows,
        figures,
        {
            "question": "a campaign reaches a household: will it redeem one of its coupons within "
            "14 days? Contacts whose 14 days lie inside the data",
            "leaks": "labels are never rendered; every history and feature ends before the "
            "contact; the windows of all training contacts end before the first cut",
            "labels": {
                name: {"rows": int((~np.isnan(column)).sum()), "ones": int(np.nansum(column))}
                for name, column in parts.items()
            },
            "epoch": "chosen on validation AUC; test is used once, by that epoch",
            "tuning": f"tree: {len(GRID)} settings on validation, seed 0; ours: the "
            "configuration as it stands",
            "best_peer": best.name,
            "data": dict(split.description),
        },
    )


def write(
    options: argparse.Namespace, rows: list[Row], figures: Row, protocol: dict[str, object]
) -> None:
    """Write the file of the stage."""
    name = f"complete_journey_{options.stage}"
    default = options.output == PARSER.get_default("output")
    write_benchmark(
        OUTPUT / f"{name}.json" if default else options.output,
        name=name,
        protocol=protocol | {"interval": INTERVAL},
        rows=rows,
        figures=figures,
        seeds=options.seeds,
    )


def tree(bench: Bench, split: Split, seeds: Sequence[int]) -> None:
    """Try all settings of the tree on validation, then train the best one with every seed."""
    folder = bench.folder / TREE
    if all((folder / f"seed_{seed}" / "result.json").exists() for seed in seeds):
        return
    trained = np.flatnonzero(~np.isnan(split.train.labels))
    places = split.train.positions()[trained]
    behind = places > 0  # with a history, as in the evaluation
    own = EvaluationSet(split.train, split.train.rows_of_users()[trained][behind], places[behind])
    data = {
        name: (features(rows), _labels(rows))
        for name, rows in (("train", own), ("validation", split.validation))
    }
    tested, trials = features(split.test), []
    for number, setting in enumerate(GRID):
        place = folder / f"trial_{number:02d}"
        place.mkdir(parents=True, exist_ok=True)
        save_result(place, {"settings": setting, **fit(setting, 0, data).summary})
        trials.append(read_result(place / "result.json"))
    best = max(trials, key=lambda trial: trial["validation_auc"])["settings"]
    for seed in seeds:
        fitted, place = fit(best, seed, data), folder / f"seed_{seed}"
        save_column(place, "test_scores", fitted.scores(tested))
        save_result(place, {"seed": seed, "settings": best, **fitted.summary})


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))


def _labels(rows: EvaluationSet) -> np.ndarray:
    return rows.log.labels[rows.events].astype(np.float64)


def _redeemed_before(rows: EvaluationSet) -> np.ndarray:
    """(N,) redemptions in the history, as a rule of thumb."""
    code = rows.log.code_names.behaviors.index("redeem")
    counts = [(rows.history(n).behaviors == code).sum() for n in range(len(rows))]
    return np.array(counts, dtype=np.float64)


def main(options: argparse.Namespace) -> None:
    """Do one stage."""
    config_file = Path(f"configs/complete_journey_{options.stage}.yaml")
    stage = {"category": category, "redemption": redemption}[options.stage]
    stage(options, config_file, RunConfig.load(config_file, options.overrides))


if __name__ == "__main__":
    main(started(PARSER, overrides=True))
