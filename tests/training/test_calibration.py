"""Scales of the memory: the best likelihood on validation."""

import itertools

import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.splits import split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training import calibration
from llm_influence.training.calibration import fit_lift, fit_scales
from tests import tiny


def likelihood(model, rows):
    """Mean log-probability of the true items, all items being candidates."""
    histories = [rows.history(n) for n in range(len(rows))]
    with torch.no_grad():
        logs = model(collate(model.encoder.encode(histories))).item_logits.log_softmax(dim=1)
    return float(logs.gather(1, torch.from_numpy(rows.target_items.astype(int))[:, None]).mean())


def test_the_chosen_scales_have_the_best_likelihood(monkeypatch):
    tried = ((0.0, 0.2, 1.0), (0.0, 0.5, 4.0), (0.5, 1.0))
    names = ("ASSOCIATION_SCALES", "EXCITATION_SCALES", "EXPONENTS")
    for name, values in zip(names, tried, strict=True):
        monkeypatch.setattr(calibration, name, values)
    split = split_log(tiny.small_log())
    config = tiny.run_config(model={"item_head": {"memory": {"enabled": True}}})
    model = tiny.moved(InfluenceModel.build(config, split.train)).eval()
    fit_scales(model, split.validation, EvaluationConfig(exclude_seen=False, batch_size=5))
    chosen, values = model.item_head.memory.scales.clone(), {}
    for triple in itertools.product(*tried):
        model.item_head.memory.scales.copy_(torch.tensor(triple))
        values[triple] = likelihood(model, split.validation)
    best = max(values, key=values.get)
    assert max(values.values()) > min(values.values())
    torch.testing.assert_close(chosen, torch.tensor(best))


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
