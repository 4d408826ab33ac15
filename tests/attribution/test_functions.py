"""`explain_function` on functions whose influence is known."""

from functools import partial

import numpy as np
import pytest

from llm_influence.attribution.functions import explain_function
from llm_influence.attribution.methods import METHODS, Shapley
from llm_influence.attribution.registry import Perturbation
from llm_influence.errors import ExplanationError
from llm_influence.numerics import every_coalition, exact_shapley

REMOVING = [name for name, method in METHODS.items() if issubclass(method, Perturbation)]
WORTH = np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.5])
PAIRS = np.triu(np.random.default_rng(0).normal(size=(9, 9)), 1)


def additive(masks):
    return 4 + masks @ WORTH


def pairwise(masks):
    return masks @ np.arange(9.0) + ((masks @ PAIRS) * masks).sum(1)


@pytest.mark.parametrize("method", REMOVING)
def test_players_of_an_additive_function_get_their_worth(method):
    result = explain_function(additive, 6, method)
    np.testing.assert_allclose(result.values, WORTH, atol=1e-8)
    assert (result.base_value, result.full_value) == (4, pytest.approx(8))
    assert result.evaluations <= 64


@pytest.mark.parametrize(
    ("method", "tolerance"),
    [
        (Shapley(evaluations=120, surrogate="linear", tolerance=0), 1e-8),  # pair effects cancel
        (Shapley(evaluations=200, tolerance=0), 0.3),
        ("permutation_shapley", 1e-8),  # an order and its reverse are exact for pairs
        ("exact_shapley", 1e-8),
    ],
)
def test_players_of_a_pairwise_function_get_their_exact_values(method, tolerance):
    expected = exact_shapley(pairwise(every_coalition(9)))
    np.testing.assert_allclose(expected, np.arange(9) + (PAIRS.sum(0) + PAIRS.sum(1)) / 2)
    result = explain_function(pairwise, 9, method)
    np.testing.assert_allclose(result.values, expected, atol=tolerance)
    assert result.values.sum() == pytest.approx(result.full_value - result.base_value)


def test_several_targets_share_evaluations_and_get_what_each_alone_gets():
    calls = []

    def both(masks):
        calls.append(len(masks))
        assert len(masks) <= 50
        return np.column_stack([np.tanh(pairwise(masks) / 20), pairwise(masks)])

    together = explain_function(both, 9, evaluations=100, batch_size=50)
    assert together.values.shape == together.standard_errors.shape == (2, 9)
    assert together.base_value.shape == together.full_value.shape == (2,)
    assert sum(calls) == together.evaluations <= 100
    for target, f in enumerate((lambda m: np.tanh(pairwise(m) / 20), pairwise)):
        alone = explain_function(f, 9, evaluations=100)
        np.testing.assert_array_equal(together.values[target], alone.values)
        np.testing.assert_array_equal(together.standard_errors[target], alone.standard_errors)


def test_the_seed_decides_the_draws_and_options_are_those_of_the_method():
    smooth_game = lambda m: np.tanh(pairwise(m) / 20)  # noqa: E731
    sampled = partial(explain_function, smooth_game, 9, "permutation_shapley", evaluations=40)
    np.testing.assert_array_equal(sampled(seed=3).values, sampled(seed=3).values)
    assert not np.array_equal(sampled(seed=0).values, sampled(seed=1).values)
    smooth = partial(explain_function, smooth_game, 9, evaluations=60)
    assert smooth(tolerance=0.0).evaluations == 60
    assert smooth(tolerance=0.0).converged is False
    assert smooth(method="leave_one_out", evaluations=None).standard_errors is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "attention_flow"}, "needs a model"),
        ({"method": "leave_one_out", "evaluations": 10}, "unknown option 'evaluations'"),
        ({"players": 0}, "players is 0"),
        (
            {"f": pairwise, "players": 9, "evaluations": 12},
            "12 evaluations for 9 events.*at least 20",
        ),
        ({"f": lambda masks: np.log(masks.sum(1))}, "not finite"),
        ({"f": lambda masks: np.ones(3)}, r"returned shape \(3,\)"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments, message):
    given = {"f": additive, "players": 6} | arguments
    with np.errstate(divide="ignore"), pytest.raises(ExplanationError, match=message):
        explain_function(**given)
