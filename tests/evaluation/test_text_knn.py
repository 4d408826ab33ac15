"""The text kNN on vectors that can be reckoned by hand."""

import pytest
import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import split_log
from llm_influence.evaluation.baselines import LAST, POOLS, TextKNN, best_text_knn
from llm_influence.evaluation.metrics import evaluate
from tests import tiny
from tests.evaluation.test_baselines import log_of

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
