"""Scales of the memory: the best likelihood on validation."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training import calibration
from llm_influence.training.calibration import fit_lift, fit_scales
from tests import tiny


def likelihood(model, rows, *, exclude_seen):
    """Mean log-probability of the true items among the candidates, where they are candidates."""
    logs = []
    for n in range(len(rows)):
        history, target = rows.history(n), int(rows.target_items[n])
        with torch.no_grad():
            logits = model(collate(model.encoder.encode([history]))).item_logits[0].double()
        if exclude_seen:
            logits[history.items.astype(int)] = -torch.inf
        logs.append(float(logits.log_softmax(dim=0)[target]))
    return float(np.mean([value for value in logs if value > -np.inf]))


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_chosen_scales_have_the_best_likelihood(monkeypatch, exclude_seen):
    """Histories repeat items, so a seen item must not be left out twice."""
    tried = ((0.0, 0.2, 1.0), (0.0, 0.5, 4.0, 30.0), (0.5, 1.0))
    names = ("ASSOCIATION_SCALES", "EXCITATION_SCALES", "EXPONENTS")
    for name, values in zip(names, tried, strict=True):
        monkeypatch.setattr(calibration, name, values)
    items = [item for u in range(9) for item in (u % 4, 10 + u, u % 4, u % 4, 20, 21)]
    users = [f"u{n // 6}" for n in range(len(items))]
    columns = {"user_id": users, "item_id": [f"i{n}" for n in items]}
    events = pa.table(columns | {"timestamp": list(range(0, 3600 * len(items), 3600))})
    split = split_log(BehaviorLog.read(events, items=tiny.items_table()))
    rows = split.validation
    assert any(len(set(h.items)) < len(h) for h in map(rows.history, range(len(rows))))
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    model = tiny.moved(InfluenceModel.build(config, split.train)).eval()
    fit_scales(model, rows, EvaluationConfig(exclude_seen=exclude_seen, batch_size=5))
    chosen, values = tuple(model.item_head.memory.scales.tolist()), {}
    for triple in itertools.product(*tried):
        model.item_head.memory.scales.copy_(torch.tensor(triple))
        values[triple] = likelihood(model, rows, exclude_seen=exclude_seen)
    (chosen_value,) = [value for triple, value in values.items() if np.allclose(triple, chosen)]
    assert chosen_value == pytest.approx(max(values.values()), abs=1e-5)
    assert chosen_value > min(values.values()) + 1e-2


def test_a_model_without_memory_is_left_alone():
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": False}}})
    model = InfluenceModel.build(config, split.train).eval()
    before = predict_rows(model, split.validation, EvaluationConfig())
    fit_scales(model, split.validation, EvaluationConfig())
    after = predict_rows(model, split.validation, EvaluationConfig())
    assert (before["rank"] == after["rank"]).all()


def test_the_lift_is_that_of_known_items_that_play_new_ones(monkeypatch):
    """The same likelihood by hand, with one part of the catalogue after the other made new."""
    monkeypatch.setattr(calibration, "LIFTS", torch.tensor([-1.0, 0.0, 0.5, 2.0]).double())
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    model = tiny.moved(InfluenceModel.build(config, split.train)).eval()
    memory, rows = model.item_head.memory, split.validation
    memory.scales.copy_(torch.tensor([0.0, 0.0, 0.7]))  # the language model alone
    fit_lift(model, rows, EvaluationConfig(exclude_seen=False, batch_size=5))
    order = torch.randperm(model.num_items, generator=torch.Generator().manual_seed(0))
    targets = torch.from_numpy(rows.target_items.astype(int))[:, None]
    batch = collate(model.encoder.encode([rows.history(n) for n in range(len(rows))]))
    with torch.no_grad():
        query = model.query(batch)
        own, new = (
            0.7 * model.item_head.language_logits(query, vectors)
            for vectors in (model.item_vectors(), model.embeddings.as_new())
        )
    assert not torch.allclose(own, new)
    values = {}
    for lift in calibration.LIFTS.tolist():
        logits = [
            torch.where(order % calibration.PARTS == part, new + lift, own)
            for part in range(calibration.PARTS)
        ]
        logs = torch.stack(logits).double().log_softmax(dim=2)
        values[lift] = float(logs.gather(2, targets.expand(len(logs), -1, -1)).sum())
    assert float(memory.lift) == max(values, key=values.get)


def test_a_later_item_gets_the_lift():
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    history, logits = split.validation.history(0), []
    for lift in (0.0, 1.5):
        model = InfluenceModel.build(config, split.train).eval()
        model.item_head.memory.lift.fill_(lift)
        model.item_head.memory.scales.copy_(torch.tensor([0.0, 0.0, 1.0]))
        model.add_items(Catalogue.from_ids(["new"]))
        logits.append(next(model.predict([history]))[1].item_logits[0])
    raised = logits[1] - logits[0]
    torch.testing.assert_close(raised[-1] - raised[0], torch.tensor(1.5))
