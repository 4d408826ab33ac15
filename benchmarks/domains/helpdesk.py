"""The next activity of a help desk's tickets beside an LSTM: docs/benchmarks/helpdesk.json.

    python -m benchmarks.domains.helpdesk --shared ../shared/data

Finished runs are not repeated. docs/tutorials/customer_service.md says what is equal for all
systems.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np

from benchmarks.comparison import INTERVAL, System, of_means, report
from benchmarks.harness import Row, arguments, results_of, started, write_benchmark
from benchmarks.peer_runs import OURS, Bench, read_result, read_seeds
from benchmarks.peers.activity_lstm import Cases, settings, train
from llm_influence.config.run import RunConfig
from llm_influence.data.splits import Split, split_log
from llm_influence.datasets.public import open_data

CONFIG = Path("configs/helpdesk.yaml")
METRIC = "accuracy"
PARSER = arguments(
    __doc__,
    "helpdesk",
    seeds=(0, 1, 2),
    shared=(Path("../shared/data"), "folder of helpdesk.csv"),
    trials=(12, "settings tried of the LSTM"),
    trial_seconds=30.0,
    pin=(0, "the core that our runs are pinned to"),
)


def lstm(cases: Cases, users: np.ndarray, options: argparse.Namespace) -> tuple[System, list[Row]]:
    """Settings tried on validation with seed 0, then the best one with every seed."""
    results = results_of(options, trial_seconds=options.trial_seconds)

    def trained(setting: dict, seed: int, seconds: float, *, answers: bool) -> dict:
        run = train(cases, setting, seed, max_seconds=seconds)
        record = {"validation": run.validation, "seconds": run.seconds, "epochs": run.epochs}
        return record | ({"correct": run.correct.tolist()} if answers else {})

    points, seconds = list(itertools.islice(settings(), options.trials)), options.trial_seconds
    tried = [
        results.keep(f"lstm {s}", lambda s=s: trained(s, 0, seconds, answers=False)) for s in points
    ]
    best = points[max(range(len(points)), key=lambda n: tried[n]["validation"])]
    runs = [
        results.keep(
            f"lstm {best}, seed {n}", lambda n=n: trained(best, n, 3 * seconds, answers=True)
        )
        for n in options.seeds
    ]
    validation = float(np.mean([run["validation"] for run in runs]))
    correct = np.array([run["correct"] for run in runs])
    rows: list[Row] = [
        {"system": "lstm", "split": "validation", "metric": f"{METRIC} of a setting"}
        | {"value": trial["validation"], "trial": number, "setting": str(point)}
        | {"seconds": trial["seconds"]}
        for number, (point, trial) in enumerate(zip(points, tried, strict=True))
    ]
    return of_means("lstm", correct, users, METRIC, validation=validation), rows


def most_frequent_next(split: Split) -> System:
    """What most often followed the last activity in training: a Markov chain of order 1."""
    train, size = split.train, len(split.log.catalogue)
    counts = np.zeros((size, size))
    follows = train.positions() > 0
    np.add.at(counts, (train.items[:-1][follows[1:]], train.items[1:][follows[1:]]), 1)
    last = split.log.items[split.test.events - 1]
    correct = (counts.argmax(axis=1)[last] == split.test.target_items).astype(np.float64)
    return of_means("markov chain", correct[None], split.test.users, METRIC)


def main(options: argparse.Namespace) -> None:
    """Train every system, use the test examples once, write the figures."""
    overrides = [f"--data.source={options.shared / 'helpdesk.csv'}", *options.overrides]
    config = RunConfig.load(CONFIG, overrides)
    bench = Bench(options.work, options.pin, Path(), {}, METRIC)
    bench.export(split_log(open_data(config.data), config.data.split))
    split = bench.split()
    users = split.test.users
    peer, trials = lstm(Cases.load(bench.task), users, options)
    bench.ours(CONFIG, overrides, options.seeds)
    measured = bench.folder / OURS
    validation = [
        read_result(path)["validation"]["items"]["hr@1"]
        for path in sorted(measured.glob("seed_*/model/metrics.json"))
    ]
    first = (read_seeds(measured, "ranks")[1] == 1).astype(np.float64)
    ours = of_means(OURS, first, users, METRIC, validation=float(np.mean(validation)))
    rows, figures, best = report([ours, peer, most_frequent_next(split)], METRIC)
    write_benchmark(
        options.output,
        name="helpdesk",
        protocol={
            "question": "given a ticket's activities so far and their times, which comes next? "
            "Every event behind a case's first; the moment of the next one is not known",
            "trained_on": "events before the first cut, by every system",
            "epoch": "chosen on validation accuracy by every system; test is used once",
            "tuning": f"LSTM: {len(trials)} settings on validation, seed 0; ours: 17, seed 0, as "
            "docs/tutorials/customer_service.md says",
            "interval": INTERVAL,
            "best_peer": best.name,
            "data": dict(split.description),
        },
        rows=rows + trials,
        figures=figures,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main(started(PARSER, overrides=True))
