"""Metrics and ranks against scikit-learn and calculations by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, f1_score, log_loss, roc_auc_score

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import split_log
from llm_influence.evaluation.metrics import (
    MISSED,
    ModelRecommender,
    behavior_metrics,
    calibration_error,
    evaluate,
    exposure_metrics,
    feedback_metrics,
    protocol,
    ranking_metrics,
    seen_items,
    target_ranks,
    value_metrics,
)
from llm_influence.modeling.scoring import ItemScores
from tests import tiny


@given(
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    seen=st.integers(0, 2**9 - 1),
    target=st.integers(0, 8),
)
def test_a_rank_is_the_place_in_the_sorted_list_of_candidates(scores, seen, target):
    """Few distinct scores, so that most are tied."""
    size = len(scores)
    target %= size
    left_out = {item for item in range(size) if seen >> item & 1}
    candidates = [item for item in range(size) if item not in left_out]
    order = sorted(candidates, key=lambda item: (-scores[item], item))
    expected = order.index(target) + 1 if target in order else MISSED
    codes = torch.tensor([[*left_out, *left_out, -1]])  # as a history with repeated items
    ranks = target_ranks(torch.tensor([scores]).float(), torch.tensor([target]), codes)
    assert ranks.tolist() == [expected]
    full = sorted(range(size), key=lambda item: (-scores[item], item))
    ranks = target_ranks(torch.tensor([scores]).float(), torch.tensor([target]))
    assert ranks.tolist() == [full.index(target) + 1]


def test_seen_items_are_those_of_each_history():
    codes = [np.array([2, 0, 2], np.int32), np.array([], np.int32)]
    assert seen_items(codes).tolist() == [[2, 0, 2], [-1, -1, -1]]


def test_metrics_have_their_closed_forms():
    metrics = ranking_metrics(np.array([1, 3, 10, 11, MISSED]), cutoff=10)
    assert metrics == pytest.approx(
        {
            "hr@10": 3 / 5,
            "ndcg@10": (1 + 1 / 2 + 1 / math.log2(11)) / 5,
            "mrr": (1 + 1 / 3 + 1 / 10 + 1 / 11) / 5,
        }
    )
    assert ranking_metrics(np.array([1, 1]), cutoff=1) == {
        "hr@1": 1,
        "ndcg@1": 1,
        "mrr": 1,
    }
    assert ranking_metrics(np.array([MISSED]), cutoff=5)["hr@5"] == 0
    assert ranking_metrics(np.array([MISSED]), cutoff=5)["mrr"] == 0


@pytest.fixture(scope="module")
def rows():
    return split_log(tiny.small_log(users=40)).test


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_rank_is_the_place_among_the_recommendations(model, rows, exclude_seen):
    config = EvaluationConfig(exclude_seen=exclude_seen, batch_size=7)
    ranks = evaluate(ModelRecommender(model), rows, config)[1]
    assert len(ranks) == len(rows)
    for row, rank in enumerate(ranks):
        best = model.recommend(rows.history(row), k=30, exclude_seen=exclude_seen)
        target = model.catalogue.ids[int(rows.target_items[row])].as_py()
        assert best[rank - 1].item == target


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_of_items_change_neither_ranks_nor_recommendations(model, rows, chunk, monkeypatch):
    histories = [rows.history(row) for row in range(8)]

    def ranked():
        ranks = evaluate(ModelRecommender(model), rows, EvaluationConfig())[1]
        return ranks.tolist(), [model.recommend(history, k=30) for history in histories]

    ranks, best = ranked()
    monkeypatch.setattr(ItemScores, "chunk", chunk)
    ranks_in_chunks, best_in_chunks = ranked()
    assert ranks_in_chunks == ranks
    for row, (one, other) in enumerate(zip(best, best_in_chunks, strict=True)):
        assert [r.item for r in other] == [r.item for r in one]
        odds = [r.log_odds for r in one]
        assert [r.log_odds for r in other] == pytest.approx(odds, abs=1e-5)
        target = model.catalogue.ids[int(rows.target_items[row])].as_py()
        assert other[ranks[row] - 1].item == target


class Favours:
    """Gives the target the highest score."""

    name = "oracle"

    def __init__(self, rows):
        self.answers = {id_of(rows.history(n)): rows.target_items[n] for n in range(len(rows))}

    def scores(self, histories):
        scores = torch.zeros(len(histories), 30)
        for row, history in enumerate(histories):
            scores[row, int(self.answers[id_of(history)])] = 1
        return scores


def id_of(history):
    return history.user_id, len(history)


def test_a_repeated_item_is_a_miss_where_seen_items_are_left_out():
    table = tiny.events_table(users=2)
    items = table["item_id"].to_pylist()
    items[3] = items[0]  # u0 has four events; the last repeats the first
    table = table.set_column(1, "item_id", [items])
    log = tiny.BehaviorLog.read(table, items=tiny.items_table())
    test = split_log(log).test
    assert evaluate(Favours(test), test, EvaluationConfig())[1].tolist() == [MISSED, 1]
    counted = evaluate(Favours(test), test, EvaluationConfig(exclude_seen=False))
    assert counted[1].tolist() == [1, 1]
    assert evaluate(Favours(test), test, EvaluationConfig())[0]["hr@10"] == 0.5


def test_metrics_do_not_depend_on_the_batches_and_follow_the_cutoff(model, rows):
    one, all_at_once = (
        evaluate(ModelRecommender(model), rows, EvaluationConfig(batch_size=size, cutoff=3))
        for size in (1, 64)
    )
    assert one[1].tolist() == all_at_once[1].tolist()
    assert one[0] == ranking_metrics(one[1], 3)


def test_the_protocol_describes_the_evaluation(rows):
    said = protocol(rows, EvaluationConfig(exclude_seen=False, cutoff=5))
    assert said["rows"] == 40
    assert said["candidates"] == "all 30 items of the catalogue"
    assert said["seen_items"] == "candidates as well"
    assert said["cutoff"] == 5


# --- feedback, behaviours, exposure --------------------------------------------------------------


@pytest.fixture(scope="module")
def answers():
    """Labels, log-odds with many ties, and users of whom some have one sort of label alone."""
    draw = np.random.default_rng(3)
    scores = np.round(2 * draw.standard_normal(300), 1)
    labels = draw.random(300) < 1 / (1 + np.exp(-scores))
    return labels.astype(float), scores, np.array([f"u{n}" for n in draw.integers(0, 120, 300)])


def test_auc_log_loss_and_brier_are_those_of_scikit_learn(answers):
    labels, scores, _ = answers
    result, chances = feedback_metrics(*answers), 1 / (1 + np.exp(-scores))
    assert result["auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert result["log_loss"] == pytest.approx(log_loss(labels, chances))
    assert result["brier"] == pytest.approx(brier_score_loss(labels, chances))


def test_gauc_is_the_mean_auc_of_users_with_both_labels_by_their_rows(answers):
    labels, scores, users = answers
    areas, rows = [], []
    for user in np.unique(users):
        own = users == user
        if len(np.unique(labels[own])) == 2:
            areas.append(roc_auc_score(labels[own], scores[own]))
            rows.append(own.sum())
    assert 20 < len(areas) < len(np.unique(users))
    result = feedback_metrics(labels, scores, users)["gauc"]
    assert result == pytest.approx(np.average(areas, weights=rows))
    assert abs(result - np.mean(areas)) > 1e-3


def test_metrics_do_not_depend_on_the_order_of_rows(answers):
    order = np.random.default_rng(0).permutation(300)
    shuffled = feedback_metrics(*(column[order] for column in answers))
    assert shuffled == pytest.approx(feedback_metrics(*answers), rel=1e-12)


def test_the_calibration_error_compares_each_bin_of_equal_mass_with_its_share_of_ones():
    chances = np.arange(1, 31) / 31
    ones = (np.arange(30) % 3 == 0).astype(float)
    bins = [slice(2 * n, 2 * n + 2) for n in range(15)]
    by_hand = sum(abs(chances[b].sum() - ones[b].sum()) for b in bins) / 30
    assert calibration_error(ones, chances) == pytest.approx(by_hand)
    same = np.full(30, 0.25)  # equal chances stand in one bin, in whatever order their labels come
    assert calibration_error(ones, same) == pytest.approx(abs(0.25 - 1 / 3))


def test_what_is_certain_and_right_costs_nothing():
    result = feedback_metrics([0, 1], [-np.inf, np.inf], ["u", "u"])
    assert result == {"auc": 1, "gauc": 1, "log_loss": 0, "ece": 0, "brier": 0}
    assert feedback_metrics([1, 0], [-np.inf, np.inf], ["u", "u"])["log_loss"] == np.inf


def test_areas_of_one_sort_of_label_are_not_defined():
    result = feedback_metrics([1, 1, 0], [0.0, 1.0, 2.0], [7, 7, 8])
    assert np.isnan(result["gauc"])
    assert result["auc"] == 0
    assert np.isnan(feedback_metrics([1, 1], [0.0, 1.0], [7, 8])["auc"])


def test_errors_of_values():
    assert value_metrics([1, 2, 4], [1, 4, 3]) == pytest.approx(
        {"rmse": (5 / 3) ** 0.5, "mae": 1.0}
    )


def test_behaviours_are_measured_as_by_scikit_learn():
    targets, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 3])
    result = behavior_metrics(targets, predicted, np.log([0.5, 0.25, 0.5, 1, 1, 0.125]))
    assert result["accuracy"] == pytest.approx(4 / 6)
    assert result["macro_f1"] == pytest.approx(np.mean([2 / 3, 2 / 3, 4 / 5, 0]))
    assert result["macro_f1"] == pytest.approx(
        f1_score(targets, predicted, average="macro", zero_division=0)
    )
    assert result["log_loss"] == pytest.approx(-np.log([0.5, 0.25, 0.5, 0.125]).sum() / 6)


def test_exposure_counts_items_shown_and_their_percentiles():
    counts = np.array([0, 10, 5, 5])  # percentiles 1/8, 7/8, and 1/2 for the two in the middle
    top = np.array([[1, 2], [1, -1]])
    assert exposure_metrics(top, np.array([0, 1]), counts, 2) == pytest.approx(
        {"coverage@2": 2 / 4, "popularity@2": (7 / 8 + 1 / 2 + 7 / 8) / 3, "target_popularity": 0.5}
    )
