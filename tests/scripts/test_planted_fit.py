import sys
from pathlib import Path

import numpy as np
import pytest

from llm_influence.config import PlantedConfig
from llm_influence.data.planted import generate

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from planted_fit import fit_law


@pytest.fixture(scope="module")
def truth():
    return generate(PlantedConfig(users=150, half_life=10_000, seed=3))[1]


def test_the_true_influences_give_the_law_back(truth):
    found = fit_law(truth, truth.influence, range(150))
    assert found.half_life == pytest.approx(10_000, rel=1e-3)
    expected = {"purchase": 1, "click": 0.5, "dismiss": -0.5, "impression": 0}
    assert found.weights == pytest.approx(expected, abs=1e-3)
    assert max(found.errors(truth.law).values()) < 1e-3


def test_the_unit_of_the_scores_does_not_matter_and_their_errors_show(truth):
    tripled = fit_law(truth, [3 * row for row in truth.influence], range(150))
    assert tripled.errors(truth.law)["behavior_weight_error"] < 1e-3
    recent = [np.eye(len(row))[-1] for row in truth.influence]
    assert fit_law(truth, recent, range(150)).errors(truth.law)["half_life_error"] > 0.5
