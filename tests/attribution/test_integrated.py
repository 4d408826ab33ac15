"""Integrated gradients: the adaptive rule, and one event after the other."""

from functools import partial

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.gradients import Surface, starting_vectors
from llm_influence.attribution.integrated import SimpsonPath
from tests.attribution.stand_ins import TARGET, a_task, run_method

integrated = partial(run_method, "integrated_gradients")

# --- the adaptive rule ----------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.05, 0.001])
def test_adaptive_integrated_gradients_are_complete_to_the_tolerance(model, log, tolerance):
    explained = integrated(model, log, tolerance=tolerance)
    assert explained.converged.all()
    assert (explained.completeness_gaps() <= tolerance).all()
    assert (explained.evaluations % 2 == 0).all()
    assert (explained.evaluations >= 10).all()


def test_the_adaptive_rule_finds_what_many_points_find(model, log):
    fine = integrated(model, log, steps=32)
    for ours, theirs in zip(
        integrated(model, log, tolerance=1e-3).scores,
        fine.scores,
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-2 * np.abs(theirs).max())
    assert integrated(model, log, tolerance=0.1).evaluations.max() < fine.evaluations.min()


def test_a_row_that_may_not_go_on_is_named_and_the_others_converge(bert, log):
    free = integrated(bert, log, rows=range(8))
    stopped = integrated(bert, log, rows=range(8), max_steps=5)
    assert free.converged.all()
    assert 0 < stopped.converged.sum() < 8
    np.testing.assert_array_equal(stopped.converged, stopped.completeness_gaps() <= 0.01)
    assert (stopped.evaluations == 10).all()
    for row in np.flatnonzero(free.evaluations == 10):
        assert stopped.converged[row]
        np.testing.assert_allclose(stopped.scores[row], free.scores[row], atol=1e-6)


def known(slope, value, **how):
    """A path whose function is known, refined to its end, and how many points it took."""
    path = SimpsonPath()
    while path.missing:
        for point in path.missing:
            path.values[point], path.scores[point] = value(point), np.array([slope(point)])
        path.refine(how.get("tolerance", 0.01), how.get("most", 1000) - len(path.values))
    return float(path.integral().sum()), path


def test_simpson_is_exact_for_cubics_and_asks_for_no_more():
    found, path = known(lambda s: 4 * s**3, lambda s: s**4)
    assert found == pytest.approx(1, abs=1e-12)
    assert sorted(path.values) == [0, 0.25, 0.5, 0.75, 1]


def test_points_gather_where_the_path_is_steep():
    _, path = known(lambda s: 50 / (1 + (50 * s) ** 2), lambda s: float(np.arctan(50 * s)))
    points = np.array(sorted(path.values))
    assert (points < 0.1).sum() > (points > 0.3).sum()
    assert len(points) < 40


def test_errors_of_both_signs_do_not_hide_each_other():
    """The whole integral is exact by symmetry while each half is far off."""

    def slope(s):
        return 2.0 + 100 * (s - 0.5) ** 9 * 2**9

    found, path = known(slope, lambda s: 2 * s + 10 * (s - 0.5) ** 10 * 2**9)
    assert found == pytest.approx(2, abs=0.02)
    assert len(path.values) > 5


def test_no_point_is_computed_beyond_the_most_allowed():
    _, path = known(lambda s: np.sin(300 * s), lambda s: -np.cos(300 * s) / 300, most=20)
    assert len(path.values) == 19


# --- one event after the other --------------------------------------------------------------


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
def test_the_event_path_is_the_integral_of_the_gradient_along_it(bert, log, order):
    model = bert
    history = model.encoder.trim(log.at(0))
    influence = Explainer(model, "event_path_integrated_gradients", order=order)
    found = influence.explain(history, TARGET)
    task = a_task(model, [history])
    surface = Surface(task)
    inputs, rows = surface.inputs, np.zeros(1, dtype=np.int64)
    now = starting_vectors(task, inputs, "mean")
    events = range(len(history))
    for event in events if order == "oldest_first" else reversed(events):
        there = (task.batch.event_index == event)[..., None]
        moved, total = torch.where(there, inputs - now, 0.0), 0.0
        points, weights = np.polynomial.legendre.leggauss(16)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            at = now + float(point) * moved
            _, score = surface.gradients(
                rows, at.__getitem__, lambda _, g, m=moved: (g * m).sum((1, 2))
            )
            total += weight * float(score.item())
        now = now + moved
        assert found.values[event] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("order", ["both", "oldest_first", "newest_first"])
def test_event_path_scores_telescope(model, log, order):
    explainer = Explainer(model, "event_path_integrated_gradients", order=order)
    for user in (0, 7):
        history = model.encoder.trim(log.at(user))
        found = explainer.explain(history, TARGET)
        moved = found.full_value - found.base_value
        assert found.values.sum() == pytest.approx(moved, abs=1e-9)
        assert found.quality.evaluations == (
            2 * len(history) if order == "both" else len(history) + 1
        )
