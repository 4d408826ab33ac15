"""From runs to figures, on a task small enough to be exported and answered by hand."""

import json

import numpy as np
import pytest

from benchmarks.peer_runs import save_column, save_result
from benchmarks.prediction.feedback import baselines, bench_of, examples_of, measure, write_report
from llm_influence.config.data import SplitConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log

USERS, EVENTS = 30, 12


@pytest.fixture
def split():
    random = np.random.default_rng(0)
    count = USERS * EVENTS
    log = BehaviorLog.from_arrays(
        user_ids=[str(user) for user in range(USERS)],
        offsets=np.arange(USERS + 1) * EVENTS,
        items=random.integers(0, 8, count),
        timestamps=np.tile(np.arange(EVENTS), USERS),
        values=random.integers(1, 6, count),
        catalogue=Catalogue.from_ids([f"f{item}" for item in range(8)]),
    )
    return split_log(log, SplitConfig(held_out=3, min_events=7))


@pytest.fixture
def bench(split, tmp_path):
    bench = bench_of(tmp_path, 0, tmp_path)
    split.save(bench.task)
    split.log.catalogue.save(bench.task / "catalogue.parquet")
    return bench


def test_every_event_but_the_first_is_asked_in_the_order_of_the_split(split):
    asked = examples_of(split).to_pandas()
    assert (asked.groupby("user").position.apply(list).map(len) == EVENTS - 1).all()
    tested = asked[asked.part == "test"]
    assert (tested.position == split.test.positions).all()
    assert (tested.label == (split.test.target_values >= 4)).all()
    assert set(asked[asked.part == "train"].position) == set(range(1, EVENTS - 6))


def test_figures_compare_ours_with_the_best_peer(bench, split, capsys):
    liked = (split.test.target_values >= 4).astype(float)
    noise = np.random.default_rng(1).normal(size=(2, len(liked)))
    _finished(bench, "llm_influence", [3 * liked + noise[0], 3 * liked + noise[1]])
    _finished(bench, "tree", [liked + noise[0], liked + noise[1]])
    _finished(bench, "lstm", [noise[0]])
    baselines(bench)
    write_report(bench, bench.folder / "report.json")

    found = json.loads((bench.folder / "report.json").read_text())
    figures, test = found["figures"], split.test
    ours = np.mean([measure(test, 3 * liked + one)["auc"] for one in noise])
    best = np.mean([measure(test, liked + one)["auc"] for one in noise])
    assert found["protocol"]["best_peer"] == "tree"
    assert figures["value"] == pytest.approx(ours)
    assert figures["best_peer_value"] == pytest.approx(best)
    assert figures["ratio_to_best_peer"] == pytest.approx(ours / best)
    assert figures["ratio_to_best_peer_low"] < ours / best < figures["ratio_to_best_peer_high"]
    assert not [name for name in figures if name.startswith("joint")], "no such run is there"


def test_a_head_that_loses_nothing_has_a_joint_ratio_of_one(bench, split):
    liked = (split.test.target_values >= 4).astype(float)
    scores = liked + np.random.default_rng(1).normal(size=len(liked))
    ranks = np.random.default_rng(2).integers(1, 9, len(liked))
    for name in ("llm_influence", "tree", "items alone", "feedback alone"):
        _finished(bench, name, [scores], ranks=ranks)
    write_report(bench, bench.folder / "report.json")

    figures = json.loads((bench.folder / "report.json").read_text())["figures"]
    assert figures["joint_feedback_ratio"] == figures["joint_items_ratio"] == 1
    assert figures["ratio_to_best_peer"] == 1


def _finished(bench, name, scores, ranks=None):
    for seed, column in enumerate(scores):
        folder = bench.folder / name / f"seed_{seed}"
        save_column(folder, "test_scores", column)
        if ranks is not None:
            save_column(folder, "test_ranks", ranks)
        result = {"seed": seed, "settings": {}, "train_seconds": 1.0, "epochs": []}
        save_result(folder, result)
