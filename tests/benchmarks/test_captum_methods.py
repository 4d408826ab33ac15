"""Captum's methods, wrapped, answer the same question as ours."""

import numpy as np
import pytest

pytest.importorskip("captum", reason="peers are installed for benchmarks alone")

from benchmarks.attribution import captum_methods as peers
from llm_influence import Contrast
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.registry import Task
from llm_influence.attribution.target import bind
from tests import tiny
from tests.attribution.stand_ins import bag_model, typed, weights

SIGNED = ["feature_ablation", "shapley_value_sampling", "kernel_shap"]
SIGNED += ["layer_integrated_gradients", "input_x_gradient"]


def task(model, histories, target="top1", removal="drop"):
    return Task(model, histories, bind(target, model, histories), removal, 0)


@pytest.mark.parametrize("name", [*SIGNED, "saliency"])
def test_a_linear_model_gives_its_weights(name):
    model, history = bag_model(), typed("i3", "i9", "i4", "i12")
    found = getattr(peers, name)(task(model, [history], Contrast("i5", "i6")))
    if name != "saliency":
        known = weights(model, history, "i5", "i6")
        np.testing.assert_allclose(found.scores[0], known, rtol=1e-2, atol=1e-3)
    assert np.isfinite(found.scores[0]).all()
    assert (found.evaluations > 0).all()


@pytest.mark.parametrize("removal", ["drop", "mask"])
def test_feature_ablation_is_leaving_one_out_under_the_same_removal(log, removal):
    histories, model = [log["u0"], log["u2"]], tiny.tiny_model()
    ours = METHODS["leave_one_out"]().run(task(model, histories, removal=removal))
    theirs = peers.feature_ablation(task(model, histories, removal=removal))
    for a, b in zip(ours.scores, theirs.scores, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert ours.evaluations.tolist() == theirs.evaluations.tolist()


@pytest.mark.parametrize("name", [*SIGNED, "saliency"])
def test_batches_change_nothing(log, name):
    histories, model = [log["u0"], log["u2"]], tiny.tiny_model()
    together = getattr(peers, name)(task(model, histories))
    alone = getattr(peers, name)(task(model, histories[1:]))
    np.testing.assert_allclose(together.scores[1], alone.scores[0], rtol=1e-3, atol=1e-4)


def test_samples_follow_the_budget(log):
    model, history = tiny.tiny_model(), log["u2"]
    few, many = (
        peers.kernel_shap(task(model, [history]), budget=budget).evaluations[0]
        for budget in (5, 60)
    )
    assert few <= 5 + 2 < many <= 60 + 2
