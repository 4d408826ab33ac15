"""Scales of the memory: the best likelihood on validation."""

import itertools

import torch

from llm_influence.config.training import EvaluationConfig
from llm_influence.data.splits import split_log
from llm_influence.evaluation.evaluate import predict_rows
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training import calibration
from llm_influence.training.calibration import fit_scales
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
