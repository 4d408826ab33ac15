"""EASE by its definition, and reports that keep systems of an earlier measurement."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.comparison import OURS, System, earlier_systems, report
from benchmarks.prediction.closed_form import ItemMatrix, ease
from tests.tiny import small_log

METRIC = "ndcg@10"


def test_ease_predicts_each_item_best_from_the_others():
    log = small_log()
    sets = np.zeros((len(log), len(log.catalogue)))
    sets[log.rows_of_users(), log.items] = 1
    weights = ease(log, ridge=2.0).double().numpy()
    for item in (0, 3, 7):  # a ridge regression of its column on all others
        others = np.delete(np.arange(sets.shape[1]), item)
        gram = sets[:, others].T @ sets[:, others] + 2 * np.eye(len(others))
        expected = np.linalg.solve(gram, sets[:, others].T @ sets[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)
        assert weights[item, item] == 0


def test_a_history_is_read_with_decay_or_as_a_set_and_untrained_items_come_last():
    history = SimpleNamespace(items=np.array([1, 0, 1]))
    matrix, trained = (
        torch.tensor([[1.0, 0, 5], [0, 10, 5], [0, 0, 5]]),
        torch.tensor([1, 1, 0]) > 0,
    )
    (read,) = ItemMatrix("linear", matrix, trained, 1.0).scores([history])
    assert read.tolist() == pytest.approx([np.exp(-1), 10 * (1 + np.exp(-2)), -np.inf])
    (read,) = ItemMatrix("ease", matrix, trained).scores([history])
    assert read.tolist() == [1, 10, -np.inf]


def test_a_system_of_an_earlier_file_keeps_its_figures_and_has_no_interval(tmp_path):
    epochs = [{"epoch": 1, "train_seconds": 2.0, METRIC: 0.3}]
    run = {"seed": 0, "train_seconds": 4.0, "train_seconds_to_best": 2.0, "epochs": epochs}
    runs = [run, run | {"seed": 1}]
    ours = System(OURS, [{METRIC: 0.2}, {METRIC: 0.4}], np.array([0.2, 0.4]), runs)
    peer = System("peer", [{METRIC: 0.1}], np.array([0.1, 0.1]), [run])
    more = System(f"{OURS}_ensemble", [{METRIC: 0.9}], np.array([0.9, 0.9]), [run])
    rows, figures, best = report([ours, more, peer], METRIC)
    assert (best.name, figures["ratio_to_best_peer"]) == ("peer", pytest.approx(3))

    (tmp_path / "file.json").write_text(json.dumps({"rows": rows}))
    kept = earlier_systems(tmp_path / "file.json", METRIC)
    again, later, _ = report([ours, more, kept["peer"]], METRIC)
    assert list(kept) == [OURS, more.name, "peer"]
    assert kept[OURS].metrics == ours.metrics
    assert [one["epochs"] for one in kept[OURS].runs] == [epochs, epochs]
    assert "ratio_to_best_peer_low" in figures
    assert "ratio_to_best_peer_low" not in later
    assert [row for row in again if " against " not in row["system"]] == [
        row for row in rows if " against " not in row["system"]
    ]


def test_the_interval_over_users_of_an_earlier_system_is_kept(tmp_path):
    ours = System(OURS, [{METRIC: 0.3}], np.array([0.2, 0.4]))
    peer = System("peer", [{METRIC: 0.1}], np.array([0.05, 0.2]))
    rows, _, _ = report([ours, peer], METRIC, by_users=True)
    (tmp_path / "file.json").write_text(json.dumps({"rows": rows}))
    kept = earlier_systems(tmp_path / "file.json", METRIC)["peer"]
    again, _, _ = report([ours, kept], METRIC, by_users=True)
    assert rows[1] == again[1]
    assert again[1]["low"] < again[1]["high"]
