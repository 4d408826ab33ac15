"""Item baselines that read the order of events, by hand."""

import numpy as np
import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import split_log
from llm_influence.evaluation.evaluate import question_kinds
from llm_influence.evaluation.item_baselines import ease, first_order, item_systems, revisits
from llm_influence.modeling.model import InfluenceModel
from tests import tiny
from tests.evaluation.test_baselines import log_of

NOTHING = np.zeros(4, np.float32)


def test_revisits_count_recent_events_of_an_item_more():
    log = log_of("aab", "c")
    scores = revisits(log, NOTHING).scores([log.at(0), log.at(1)])
    decayed = np.exp(-np.arange(3) / 8.0)
    torch.testing.assert_close(
        scores[0], torch.tensor([decayed[1] + decayed[2], decayed[0], 0, 0]).float()
    )
    assert scores[1].tolist() == [0, 0, 1, 0]


def test_first_order_transitions_are_the_shares_after_the_last_item():
    log = log_of("abac", "ab", "bd")
    scores = first_order(log, NOTHING).scores([log.at(1), log.at(0)])
    torch.testing.assert_close(scores[0], torch.tensor([0.5, 0, 0, 0.5]))  # after b: a, d
    assert scores[1].tolist() == [0, 0, 0, 0]  # nothing follows c


def test_ease_solves_its_own_equation():
    """Steck 2019, equation 8: the weights minimise the ridge loss with a diagonal of 0."""
    log, ridge = log_of("abc", "abd", "cd", "bd", "a"), 2.0
    weights = ease(log, ridge).astype(np.float64)
    bought = np.zeros((5, 4))
    bought[log.rows_of_users(), log.items] = 1
    gram = bought.T @ bought
    gradient = gram @ weights - gram + ridge * weights
    assert np.abs(np.diag(weights)).max() == 0
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(gradient[off], 0, atol=1e-5)


def test_the_memory_alone_is_a_distribution_that_excited_items_lead():
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    model = InfluenceModel.build(config, split.train)
    systems = dict(item_systems(model, split, EvaluationConfig()))
    scores = systems["memory alone"].scores([split.test.history(n) for n in range(4)])
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(4), rtol=1e-4, atol=1e-4)
    without = dict(item_systems(tiny.tiny_model(), split, EvaluationConfig()))
    assert "memory alone" not in without


def test_every_example_has_one_kind():
    split = split_log(tiny.small_log())
    counts = np.bincount(split.train.items, minlength=30)
    kinds = question_kinds(split.test, counts)
    assert (sum(mask.astype(int) for mask in kinds.values()) == 1).all()
    for n in np.flatnonzero(kinds.get("revisit", np.zeros(len(split.test), bool))):
        assert split.test.target_items[n] in split.test.history(int(n)).items
