import sys
from pathlib import Path

import numpy as np
import pytest

from llm_influence.config import PlantedConfig
from llm_influence.data.planted import generate

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from planted_fit import fit_law

USERS = 150


@pytest.fixture(scope="module")
def truth():
    return generate(PlantedConfig(users=USERS, half_life=10_000, seed=3))[1]


def test_the_true_influences_give_the_law_back_in_any_unit(truth):
    for unit in (1, 3):
        found = fit_law(truth, [unit * row for row in truth.influence], range(USERS))
        assert found.half_life == pytest.approx(10_000, rel=1e-3)
        expected = {"purchase": 1, "click": 0.5, "dismiss": -0.5, "impression": 0}
        assert found.weights == pytest.approx(expected, abs=1e-3)
        assert max(found.errors(truth.law).values()) < 1e-3


def test_a_model_that_gives_less_where_it_is_sure_does_not_bias_the_law(truth):
    sure = [row / (1 + np.abs(row.sum())) for row in truth.influence]
    errors = fit_law(truth, sure, range(USERS)).errors(truth.law)
    assert max(errors.values()) < 1e-2


def test_scores_that_know_nothing_of_the_law_show_an_error(truth):
    recent = [np.eye(len(row))[-1] for row in truth.influence]
    assert fit_law(truth, recent, range(USERS)).errors(truth.law)["half_life_error"] > 0.5
