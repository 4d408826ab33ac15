import numpy as np
import pytest

from benchmarks.faithfulness.process_fit import alone, fit_process, halves, shapley
from llm_influence.config.data import PlantedConfig
from llm_influence.datasets.planted import make_planted
from llm_influence.numerics import every_coalition, exact_shapley

USERS = 150


@pytest.fixture(scope="module")
def truth():
    return make_planted(PlantedConfig(users=USERS, half_life=10_000, seed=3))[1]


def test_the_true_influences_give_the_process_back_in_any_unit(truth):
    for unit in (1, 3):
        found = fit_process(truth, [unit * row for row in truth.influence], range(USERS))
        assert found.half_life == pytest.approx(10_000, rel=1e-3)
        expected = {"purchase": 1, "click": 0.5, "dismiss": -0.5, "impression": 0}
        assert found.weights == pytest.approx(expected, abs=1e-3)
        assert max(found.errors(truth.process).values()) < 1e-3


def test_a_model_that_gives_less_where_it_is_sure_does_not_bias_the_process(truth):
    sure = [row / (1 + np.abs(row.sum())) for row in truth.influence]
    errors = fit_process(truth, sure, range(USERS)).errors(truth.process)
    assert max(errors.values()) < 1e-2


def test_scores_that_know_nothing_of_the_process_show_an_error(truth):
    recent = [np.eye(len(row))[-1] for row in truth.influence]
    assert fit_process(truth, recent, range(USERS)).errors(truth.process)["half_life_error"] > 0.5


def with_an_earlier_now(truth, user):
    """Every set of a user's events, and the process given a history that ends with its last."""
    history, target = truth.history(user), (truth.targets[user], truth.others[user])
    sets = every_coalition(len(history))
    values = [
        truth.process.values(left, np.ones((1, len(left)), dtype=bool), *target)[0]
        if len(left)
        else 0
        for left in map(history.keep, sets)
    ]
    return sets, np.array(values)


def shapley_scores(sets, values):
    return exact_shapley(values)


def weights_at_halves(sets, values):
    design = np.column_stack([np.ones(len(sets)), sets])
    return np.linalg.lstsq(design, values)[0][1:]


@pytest.mark.parametrize(
    ("question", "answer"), [(shapley, shapley_scores), (halves, weights_at_halves)]
)
def test_scores_of_sets_give_the_process_back_through_their_own_question_alone(question, answer):
    users = range(25)
    config = PlantedConfig(users=25, min_events=5, max_events=8, half_life=10_000, seed=3)
    truth = make_planted(config)[1]
    scores = [answer(*with_an_earlier_now(truth, user)) for user in users]
    assert max(fit_process(truth, scores, users, question).errors(truth.process).values()) < 1e-3
    assert fit_process(truth, scores, users, alone).half_life > 1.05 * truth.process.half_life
