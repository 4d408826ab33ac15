"""The shift by removal: what the scores of old events have in common, over their differences."""

import numpy as np
import pytest

from llm_influence.attribution.explainer import Explainer
from llm_influence.errors import ExplanationError
from llm_influence.evaluation.shift import RemovalShift, removal_shift
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.mark.parametrize("memory", [False, True])
def test_its_scores_are_those_of_leave_one_out_by_drop(log, memory):
    model = tiny.tiny_model(item_head={"memory": {"enabled": memory}})
    histories = [log.at(row) for row in (3, 5, 7)]
    measured = removal_shift(model, histories, batch_size=3)
    explained = Explainer(model, "leave_one_out", removal="drop", fidelity_masks=0)
    scores = [influence.values for influence in explained.explain(histories)]
    old = [score[: len(score) // 2] for score in scores]
    close = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(measured.mean, [score.mean() for score in old], **close)
    np.testing.assert_allclose(measured.spread, [score.std() for score in old], **close)
    np.testing.assert_allclose(measured.total, [score.sum() for score in scores], **close)


def test_shift_is_the_median_over_users_and_short_histories_are_left_out(log):
    mean, spread = np.array([-1.0, 0.3, 0.2]), np.array([0.5, 0.1, 0.0])
    measured = RemovalShift(mean, spread, total=np.array([-1.0, 2.0, -3.0]))
    assert measured.shift == pytest.approx(2.5)  # of 2 and 3: no spread, no shift
    assert measured.opposed == pytest.approx(2 / 3)
    nobody = removal_shift(tiny.tiny_model(), [log.at(0)])  # 4 events
    assert np.isnan([nobody.shift, nobody.opposed]).all()


def test_an_ensemble_of_one_model_has_the_models_shift(log):
    model = tiny.tiny_model()
    one = removal_shift(model, [log.at(7)])
    both = removal_shift(InfluenceModel.ensemble([model, model]), [log.at(7)])
    np.testing.assert_allclose(both.mean, one.mean, atol=1e-5)


def test_a_model_without_an_item_head_is_refused(log):
    model = tiny.tiny_model(item_head={"weight": 0.0})
    with pytest.raises(ExplanationError, match=r"item_head\.weight"):
        removal_shift(model, [log.at(7)])
