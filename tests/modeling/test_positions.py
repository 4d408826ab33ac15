"""Random offsets of positions in training, and their fixed offset in predictions."""

import numpy as np
import pytest
import torch

from llm_influence.attribution.prefix_cache import prefix_support
from llm_influence.config.run import RunConfig
from llm_influence.errors import ConfigError, ModelError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.positions import PREDICTION_OFFSET
from llm_influence.rendering.encoder import collate
from llm_influence.types import Event
from tests import tiny

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def shifted(kind="bert", style="token", offset=20, **options):
    sections = {"model": {"random_offset": offset, "dropout": 0.0, **options}}
    base = tiny.run_config(kind, style)
    tree = base.model_dump(mode="json")
    tree["model"] |= sections["model"]
    if style == "text":
        tree["rendering"]["max_tokens"] = 90  # of a context of 128
    model = InfluenceModel.build(RunConfig.model_validate(tree), tiny.small_log())
    return tiny.moved(model)


@pytest.fixture(scope="module", params=[("bert", "token"), ("gpt2", "text"), ("roberta", "token")])
def offset_model(request):
    return shifted(*request.param)


def some_batch(model, log, rows=(0, 3, 7)):
    return collate(model.encoder.encode([log.at(row) for row in rows]))


def test_predictions_shift_all_positions_by_the_same_offset(offset_model, log):
    batch = some_batch(offset_model, log)
    first = offset_model.backbone.first_position
    places = torch.arange(batch.input_ids.shape[1])[None]
    assert torch.equal(offset_model.positions(batch), first + PREDICTION_OFFSET + places)


def test_each_history_of_training_has_a_random_offset_of_its_own(offset_model, log):
    batch = some_batch(offset_model, log, rows=[3] * 200)
    torch.manual_seed(5)
    drawn = offset_model.positions(batch, random=True)
    torch.manual_seed(5)
    assert torch.equal(offset_model.positions(batch, random=True), drawn)
    offsets = drawn[:, 0] - offset_model.backbone.first_position
    assert set(offsets.tolist()) == set(range(21))
    assert (drawn.diff(dim=1) == 1).all()


def test_training_reads_the_offsets_and_predictions_do_not(log):
    model = shifted()
    batch = some_batch(model, log)
    with torch.no_grad():
        first, again = model(batch).item_logits, model(batch).item_logits
        model.train()
        training = [model(batch).item_logits for _ in range(2)]
    assert torch.equal(first, again)
    assert (training[0] - training[1]).abs().max() > 1e-4


def test_predictions_do_not_depend_on_the_batch_and_follow_sessions(offset_model, log):
    ((_, together),) = offset_model.predict([log.at(row) for row in (0, 3, 7)])
    for row, user in enumerate((0, 3, 7)):
        ((_, alone),) = offset_model.predict([log.at(user)])
        torch.testing.assert_close(alone.item_logits[0], together.item_logits[row], **CLOSE)
    whole = log.at(7)
    session = offset_model.session(log.at(7, len(whole) - 1))
    value = float(whole.values[-1])
    session.append(
        Event(
            whole.code_names.items[int(whole.items[-1])].as_py(),
            whole.code_names.behaviors[int(whole.behaviors[-1])],
            int(whole.timestamps[-1]),
            None if np.isnan(value) else value,
        )
    )
    ((_, expected),) = offset_model.predict([whole])
    torch.testing.assert_close(session.prediction.item_logits, expected.item_logits, **CLOSE)
    assert prefix_support(offset_model).works


def test_null_uses_the_room_of_the_context():
    model = shifted(offset=None)
    assert model.positions.random_offset == model.backbone.context - model.encoder.longest > 0
    rotary = shifted("llama", offset=None)
    assert (rotary.positions.random_offset, rotary.positions.first) == (0, 0)


def test_positions_from_the_end_need_no_prefixes_with_a_random_offset(log):
    model = shifted(positions="end")
    batch = some_batch(model, log)
    last = model.positions(batch).gather(1, batch.last()[:, None])
    assert set(last[:, 0].tolist()) == {model.encoder.longest - 1 + PREDICTION_OFFSET}
    places = batch.ends[:, :2]
    with pytest.raises(ModelError, match="positions"):
        model.query_at(batch, places)
    model.train()
    assert model.query_at(batch, places).hidden.shape[:2] == places.shape


@pytest.mark.parametrize(
    ("kind", "offset", "fix"),
    [("llama", 5, "remove"), ("modernbert", 5, "remove"), ("bert", 127, "null")],
)
def test_an_offset_without_room_or_absolute_positions_is_refused(kind, offset, fix):
    with pytest.raises(ModelError, match="random_offset") as caught:
        shifted(kind, offset=offset)
    assert fix in caught.value.fix


def test_recurrent_networks_have_no_positions_to_shift():
    tree = {"model": {"backbone": "gru", "adapter": {"kind": "full"}, "random_offset": 5}}
    with pytest.raises(ConfigError, match="no positions"):
        RunConfig.of(tree, "run.yaml")
