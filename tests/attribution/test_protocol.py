"""One protocol a run: every consumer speaks of the item that the evaluation ranks first."""

import numpy as np
import pytest

from llm_influence.attribution.attacks import attack
from llm_influence.attribution.counterfactual import counterfactual
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.interactions import influence_matrix
from llm_influence.attribution.sufficient import sufficient_events
from llm_influence.attribution.target import Slate
from llm_influence.modeling.model import InfluenceModel
from tests import tiny


@pytest.fixture(scope="module", params=[True, False])
def model(request):
    config = tiny.run_config(evaluation={"exclude_seen": request.param})
    return tiny.moved(InfluenceModel.build(config, tiny.small_log())).eval()


def first_of(model, history):
    """The first item of a ranking by hand, under the protocol of the run."""
    logits = next(model.predict([history]))[1].item_logits[0].double().numpy().copy()
    if model.exclude_seen:
        logits[model.encoder.vocabulary.item_codes(history)] = -np.inf
    return model.catalogue.ids[int(logits.argmax())].as_py()


def consumers(model, history):
    yield "recommend", model.recommend(history, 3)[0].item
    yield "session", model.session(history).recommend(3)[0].item
    record = Explainer(model, "leave_one_out").explain(history)
    yield "top1", record.target_id
    yield (
        "slate",
        Explainer(model, "leave_one_out").explain(history, Slate(3)).target_id.split(", ")[0],
    )
    yield "matrix", influence_matrix(model, history).target_ids[-1]
    yield "counterfactual", counterfactual(model, history).item
    yield "sufficient", sufficient_events(model, history).item
    yield "attack", attack(model, history, "removal", budget=1).item
    assert record.target_rank == 1
    held = len(set(history.item_ids())) if model.exclude_seen else 0
    assert record.candidates == model.num_items - held


def test_every_consumer_names_the_same_item_under_every_protocol(model):
    log = tiny.small_log()
    for user in (3, 5, 7, 9):
        history = model.encoder.trim(log.at(user))
        expected = first_of(model, history)
        assert dict(consumers(model, history)) == dict.fromkeys(
            dict(consumers(model, history)), expected
        )


def test_the_protocol_is_saved_with_the_model_and_can_be_overridden(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    again = InfluenceModel.from_pretrained(tmp_path / "m")
    assert again.exclude_seen is model.exclude_seen
    history = model.encoder.trim(tiny.small_log().at(7))
    left_out = model.recommend(history, 30, exclude_seen=True)
    assert not {one.item for one in left_out} & set(history.item_ids())
    whole = model.recommend(history, 30, exclude_seen=False)
    assert len(whole) - len(left_out) == len(set(history.item_ids()))
