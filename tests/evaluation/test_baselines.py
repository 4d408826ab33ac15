"""Popularity, item-kNN and text kNN on logs small enough to count by hand."""

import math

import numpy as np
import pytest
import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.evaluation.baselines import (
    LAST,
    POOLS,
    ItemKNN,
    Popularity,
    TextKNN,
    best_item_knn,
    best_text_knn,
)
from llm_influence.evaluation.evaluate import as_text, compare, verdict
from llm_influence.evaluation.metrics import evaluate
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


def log_of(*histories: str) -> BehaviorLog:
    """One user a word, one event a letter; items are a, b, c, d in this order."""
    rows = [
        (f"u{user}", letter, 100 * place)
        for user, word in enumerate(histories)
        for place, letter in enumerate(word)
    ]
    names = ("user_id", "item_id", "timestamp")
    table = tiny.pa.table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    return BehaviorLog.read(table, items=tiny.pa.table({"item_id": ["a", "b", "c", "d"]}))


def test_popularity_counts_events_the_same_for_everyone():
    log = log_of("abc", "ab", "aca")
    scores = Popularity(log).scores([log.at(0), log.at(1)])
    assert scores.tolist() == [[4, 2, 2, 0]] * 2


def test_item_knn_sums_cosines_of_shared_users():
    log = log_of("abab", "ab", "ac", "d")
    scores = ItemKNN(log, neighbours=4).scores([log.at(1), log.at(3)])
    ab, ac = 2 / math.sqrt(3 * 2), 1 / math.sqrt(3 * 1)
    torch.testing.assert_close(scores[0], torch.tensor([ab, ab, ac, 0]))
    assert scores[1].tolist() == [0, 0, 0, 0]


def test_item_knn_counts_only_the_nearest_neighbours():
    log = log_of("ab", "ab", "ac")
    scores = ItemKNN(log, neighbours=1).scores([log.at(2)])[0]
    assert scores[2] == 0  # c is near a, but b is nearer
    assert scores[1] == pytest.approx(2 / math.sqrt(3 * 2))


def test_an_item_that_stands_twice_in_a_history_counts_twice():
    log = log_of("aab", "ab")
    once, twice = ItemKNN(log, 4).scores([log.at(1), log.at(0)])
    assert once[1] == pytest.approx(1)
    assert twice[1] == pytest.approx(2)


def test_an_item_knn_scores_an_empty_history_with_zeros():
    log = log_of("ab", "ab")
    assert ItemKNN(log, 4).scores([log.at(0, 0)]).tolist() == [[0, 0, 0, 0]]


def test_baselines_follow_the_protocol():
    """Everyone walks a, b, c, d: with a, b, c seen, d alone is left; popularity ties otherwise."""
    split = split_log(log_of("abcd", "abcd", "abcd"))
    config = EvaluationConfig()
    for system in (Popularity(split.train), ItemKNN(split.train, 4)):
        assert evaluate(system, split.test, config)[1].tolist() == [1, 1, 1]
    with_seen = EvaluationConfig(exclude_seen=False)
    assert evaluate(Popularity(split.train), split.test, with_seen)[1].tolist() == [4, 4, 4]


def test_the_number_of_neighbours_is_chosen_on_validation():
    split = split_log(tiny.small_log(users=40))
    config = EvaluationConfig()
    best = best_item_knn(split.train, split.validation, config)
    reached = evaluate(best, split.validation, config)[0]["ndcg@10"]
    for neighbours in (10, 20, 50):
        tried = evaluate(ItemKNN(split.train, neighbours), split.validation, config)[0]
        assert tried["ndcg@10"] <= reached


def test_a_model_stands_beside_the_baselines_on_the_same_rows():
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    model = InfluenceModel.build(config, split.train)
    records = compare(model, split, EvaluationConfig())
    systems = [record["system"] for record in records]
    assert systems[0] == "llm_influence"
    assert systems[1].startswith("item-kNN (")
    assert systems[2:] == [
        *("popularity", "revisits", "first-order transitions", "linear transitions", "EASE"),
        "memory alone",
    ]
    counts = np.bincount(split.train.items, minlength=30)
    popular = evaluate(Popularity(split.train), split.test, EvaluationConfig(), counts)[0]
    assert records[2].items() >= {"system": "popularity", "split": "test", **popular}.items()
    lines = as_text(records).splitlines()
    assert len(lines) == 10
    assert f"{popular['mrr']:.4f}" in lines[4]
    assert lines[0].index("mrr") == lines[4].index(f"{popular['mrr']:.4f}")


def test_a_baseline_that_is_ahead_is_named():
    records = [{"system": "llm_influence", "ndcg@10": 0.2}, {"system": "knn", "ndcg@10": 0.1}]
    assert verdict(records, 10) == ""
    records.append({"system": "EASE", "ndcg@10": 0.25})
    assert verdict(records, 10) == (
        "The baseline EASE is ahead of the model: NDCG@10 0.2500 against 0.2000."
    )


# --- text kNN ------------------------------------------------------------------------------------


# centred: a and c are opposite, b and d are opposite, the two pairs at right angles
TEXTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]) + 5


@pytest.fixture
def history():
    return log_of("abd").at(0)


@pytest.mark.parametrize(
    ("last", "pool", "expected"),
    [
        (1, "mean", [0, -1, 0, 1]),
        (3, "mean", [1, 0, -1, 0]),  # b and d cancel
        (3, "nearest", [1, 1, 0, 1]),
        (2, "nearest", [0, 1, 0, 1]),
    ],
)
def test_scores_are_cosines_with_the_last_items(history, last, pool, expected):
    scores = TextKNN(TEXTS, last, pool).scores([history])
    torch.testing.assert_close(scores, torch.tensor([expected]).float())


def test_an_empty_history_scores_nothing(history):
    none = history.keep(slice(0))
    assert TextKNN(TEXTS, 2).scores([none, history])[0].tolist() == [0, 0, 0, 0]


def test_the_shape_is_chosen_on_validation():
    split = split_log(tiny.small_log(users=30))
    texts = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    config = EvaluationConfig()
    best = best_text_knn(texts, split.validation, config)
    reached = evaluate(best, split.validation, config)[0]["ndcg@10"]
    tried = [
        evaluate(TextKNN(texts, last, pool), split.validation, config)[0]["ndcg@10"]
        for last in LAST
        for pool in POOLS
    ]
    assert reached == max(tried)
    assert max(tried) > min(tried)
