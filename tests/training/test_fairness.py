"""The penalty of consistency: what it is, and what it leaves alone."""

import numpy as np
import pytest
import torch

from llm_influence.config.run import RunConfig
from llm_influence.config.training import FairnessConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.batch import EncodedBatch
from llm_influence.training.batches import IGNORE, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.training.regularizers import Swaps
from tests import tiny

ON = FairnessConfig(features=["age"], weight=2.0)


@pytest.fixture(scope="module", params=["token", "text"])
def model(request, tmp_path_factory):
    line = "{item}" if request.param == "token" else "{behavior} {item};"
    path = tmp_path_factory.mktemp("t") / "aged.yaml"
    path.write_text(f'name: aged\nhistory: "of {{user.age}}"\nevent: "{line}"\n')
    config = tiny.run_config(
        style=request.param, rendering={"template": str(path)}, model={"dropout": 0.0}
    )
    return tiny.moved(InfluenceModel.build(config, tiny.small_log()), 0.1)


def inputs(model, config=ON):
    log = tiny.small_log()
    windows = WindowDataset(log, model.encoder)
    swaps = Swaps(config, model.encoder, seed=3)
    collate = WindowCollator(log, model.encoder, swaps=swaps)
    return collate([windows[row] for row in range(5)])


def loss(model, batch, config=ON):
    with torch.no_grad():
        return float(NextEventObjective(model, fairness=config)(**batch)["loss"])


def test_the_penalty_is_the_divergence_of_chances_at_every_label(model):
    batch = inputs(model)
    plain = {name: part for name, part in batch.items() if not name.startswith("swapped")}
    names = EncodedBatch.__slots__
    chances = []
    for place, read in (
        ("query_time", {name: batch[name] for name in names}),
        ("swapped_at", batch["swapped"]),
    ):
        with torch.no_grad():
            states = model.states(EncodedBatch(**read))
            rows = torch.arange(len(states))[:, None]
            logits = model.item_head(states[rows, batch[place]], model.item_vectors())
        chances.append(logits.double().softmax(-1)[batch["labels"] != IGNORE].numpy())
    p, q = chances
    expected = ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2 / len(p)
    assert expected > 1e-4
    assert loss(model, batch) - loss(model, plain) == pytest.approx(2 * expected, rel=1e-3)


def test_swapped_users_differ_in_the_feature_alone(model):
    log, swaps = tiny.small_log(), Swaps(ON, model.encoder, seed=3)
    for user in range(len(log)):
        history = log.at(user)
        changed = swaps.of(history, epoch=0, user=user, start=0)
        assert changed.user["age"] != history.user["age"]
        assert changed.user["age"] in model.encoder.vocabulary.features["age"]
        assert changed.items is history.items
    drawn = {swaps.of(log.at(0), epoch=epoch, user=0, start=0).user["age"] for epoch in range(20)}
    assert len(drawn) == 2


def test_it_is_off_unless_asked_for_and_then_needs_what_it_compares(model):
    assert "swapped" not in inputs(model, FairnessConfig())
    with pytest.raises(ConfigError, match="'gender'"):
        Swaps(FairnessConfig(features=["gender"], weight=1.0), model.encoder)
    with pytest.raises(ValueError, match="at least one of features"):
        FairnessConfig(weight=1.0)
    sampled = tiny.tiny_model(item_head={"loss": "sampled"})
    with pytest.raises(ConfigError, match="loss 'full'"):
        NextEventObjective(sampled, fairness=ON)
    assert RunConfig().train.fairness.weight == 0
