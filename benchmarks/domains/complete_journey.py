"""Complete Journey beside its peers: docs/benchmarks/complete_journey_category.json, _redemption.

    python -m benchmarks.domains.complete_journey --stage category
    python -m benchmarks.domains.complete_journey --stage redemption

What is finished is not repeated. docs/tutorials/retail.md says what is asked and what is equal
for all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.domains.redemption_tree import GRID, features, fit
from benchmarks.domains.report import INTERVAL, Measured, of_gains, of_scores, report, trial_rows
from benchmarks.domains.runs import OURS, our_runs, save_arrays, save_result
from benchmarks.harness import write_benchmark
from benchmarks.peer_runs import Budget, read_trials
from benchmarks.prediction.next_item import make_environment
from benchmarks.prediction.next_item_runs import NDCG, Bench, read_runs
from llm_influence.config.run import RunConfig
from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, Split, split_log
from llm_influence.datasets.sources import open_data
from llm_influence.evaluation.metrics import evaluate, ndcg_of_rows
from llm_influence.types import History

CONFIGS = {
    stage: Path(f"configs/complete_journey_{stage}.yaml") for stage in ("category", "redemption")
}


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


def category(options: argparse.Namespace) -> None:
    """NDCG@10 of the next visit's main category."""
    config = RunConfig.load(CONFIGS["category"], options.overrides)
    folder = options.work / "category"
    environment = options.environment.absolute()
    bench = Bench("complete_journey", folder, options.core, environment, repeats=True)
    bench.export(config)
    make_environment(options.environment)
    budget = Budget(options.trials, options.tuning_seconds, 100, options.final_seconds, 4)
    bench.seeds("gru4rec", bench.tune("gru4rec", budget), options.seeds, budget)
    if not (folder / "popularity" / "seed_0" / "result.json").exists():
        bench.baselines()
    split = Split.load(bench.split, Catalogue.load(bench.split / "catalogue.parquet"))
    own = evaluate(OwnFrequency(split.train), split.test, EvaluationConfig(exclude_seen=False))[1]
    runs = our_runs(
        folder / OURS, CONFIGS["category"], options.overrides, options.seeds, options.core
    )
    ours = of_gains(
        OURS,
        np.stack([ndcg_of_rows(run.found["rank"]) for run in runs]),
        float(np.mean([run.metrics["validation"]["items"][NDCG] for run in runs])),
    )
    peers = [_ranked(name, folder) for name in ("gru4rec", "item-knn", "popularity")]
    peers.append(of_gains(OwnFrequency.name, ndcg_of_rows(own)[None]))
    rows, figures, best = report(ours, peers, split.test.users, metric=NDCG)
    trials = [
        trial | {"validation": trial[f"validation_{NDCG}"]}
        for trial in read_trials(folder / "gru4rec")
    ]
    write_benchmark(
        options.write or Path("docs/benchmarks/complete_journey_category.json"),
        name="complete_journey_category",
        protocol={
            "question": "a household stands in the shop: which category takes most money of this "
            "visit? Candidates: all items of the catalogue, those of the history included",
            "trained_on": "the events before the first cut, contacts and redemptions included, by "
            "every system; ours also reads behaviours, dollars, times, demographics and how long "
            "ago the last event was",
            "epoch": f"chosen on validation {NDCG} by every system; test asked once",
            "tuning": f"GRU4Rec: at most {options.trials} settings on validation, seed 0; "
            "item-kNN: its neighbours; ours: the configuration as it stands",
            "interval": INTERVAL,
            "best_peer": best,
            "data": dict(split.description),
        },
        rows=rows + trial_rows("gru4rec", trials, NDCG),
        figures=figures | {"gru4rec_value": peers[0].value},
        seeds=options.seeds,
    )
    print(json.dumps(figures | {"best_peer": best}, indent=1))


def _ranked(name: str, folder: Path) -> Measured:
    found = read_runs(folder / name)
    ranks = np.stack([ranks for _, ranks in found])
    validation = [result.get(f"validation_{NDCG}") for result, _ in found]
    known = [float(str(value)) for value in validation if value is not None]
    return of_gains(name, ndcg_of_rows(ranks), float(np.mean(known)) if known else None)


def redemption(options: argparse.Namespace) -> None:
    """AUC of a redemption within 14 days of a contact."""
    config = RunConfig.load(CONFIGS["redemption"], options.overrides)
    folder = options.work / "redemption"
    split = split_log(open_data(config.data), config.data.split)
    rows = split.test
    asked = ~np.isnan(_labels(rows))
    labels = _labels(rows)[asked].astype(np.int64)
    runs = our_runs(
        folder / OURS, CONFIGS["redemption"], options.overrides, options.seeds, options.core
    )
    ours = of_scores(
        OURS,
        np.stack([run.found["feedback_score"][asked] for run in runs]),
        labels,
        float(np.mean([run.metrics["validation"]["feedback"]["auc"] for run in runs])),
    )
    tree, trials = _tree(folder / "tree", split, options.seeds)
    best_trial = max(float(str(trial["validation"])) for trial in trials)
    peers = [
        of_scores("gradient-boosted tree", tree[:, asked], labels, best_trial),
        of_scores("redemptions before", _redeemed_before(rows)[None, asked], labels),
    ]
    found, figures, best = report(ours, peers, rows.users[asked], metric="auc", labels=labels)
    write_benchmark(
        options.write or Path("docs/benchmarks/complete_journey_redemption.json"),
        name="complete_journey_redemption",
        protocol={
            "question": "a campaign reaches a household: will it redeem one of its coupons within "
            "14 days? Asked for contacts whose 14 days lie inside the data",
            "leaks": "labels are never rendered; every history and feature ends before the "
            "contact; the windows of all training contacts end before the first cut",
            "labels": {
                name: {"rows": int((~np.isnan(column)).sum()), "ones": int(np.nansum(column))}
                for name, column in (
                    ("train", split.train.labels),
                    ("validation", _labels(split.validation)),
                    ("test", _labels(rows)),
                )
            },
            "epoch": "chosen on validation AUC; test asked once, by that epoch",
            "tuning": f"tree: {len(trials)} settings on validation, seed 0; ours: the "
            "configuration as it stands",
            "interval": INTERVAL,
            "best_peer": best,
            "data": dict(split.description),
        },
        rows=found + trial_rows("gradient-boosted tree", trials, "auc"),
        figures=figures,
        seeds=options.seeds,
    )
    print(json.dumps(figures | {"best_peer": best}, indent=1))


def _tree(
    folder: Path, split: Split, seeds: Sequence[int]
) -> tuple[np.ndarray, list[dict[str, object]]]:
    """(S, N) scores of the tree on the test examples, and what was tried."""
    done = folder / "result.json"
    if not done.exists():
        trained = np.flatnonzero(~np.isnan(split.train.labels))
        places = split.train.positions()[trained]
        behind = places > 0  # asked as in the evaluation: with a history
        own = EvaluationSet(
            split.train, split.train.rows_of_users()[trained][behind], places[behind]
        )
        data = {
            name: (features(rows), _labels(rows))
            for name, rows in (("train", own), ("validation", split.validation))
        }
        tested = features(split.test)
        trials = [
            {"settings": json.dumps(settings)} | fit(settings, 0, data).summary for settings in GRID
        ]
        best = max(range(len(GRID)), key=lambda number: trials[number]["validation"])
        scores = [fit(GRID[best], seed, data).scores(tested) for seed in seeds]
        save_arrays(folder / "test.npz", {"scores": np.stack(scores)})
        save_result(done, {"trials": trials})
    return np.load(folder / "test.npz")["scores"], json.loads(done.read_text())["trials"]


def _labels(rows: EvaluationSet) -> np.ndarray:
    return rows.log.labels[rows.events].astype(np.float64)


def _redeemed_before(rows: EvaluationSet) -> np.ndarray:
    """(N,) redemptions in the history: what a rule of thumb would ask."""
    code = rows.log.code_names.behaviors.index("redeem")
    found = [(rows.history(n).behaviors == code).sum() for n in range(len(rows))]
    return np.array(found, dtype=np.float64)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=CONFIGS, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path("runs/complete_journey"))
    parser.add_argument("--environment", type=Path, default=Path(".peers"))
    parser.add_argument("--core", type=int, default=0, help="the core that runs are pinned to")
    parser.add_argument("--trials", type=int, default=8, help="settings tried of GRU4Rec, at most")
    parser.add_argument("--tuning-seconds", type=float, default=400)
    parser.add_argument("--final-seconds", type=float, default=200)
    parser.add_argument("--write", type=Path, help="default: docs/benchmarks/")
    options, options.overrides = parser.parse_known_args()
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


if __name__ == "__main__":
    chosen = _options()
    {"category": category, "redemption": redemption}[chosen.stage](chosen)
