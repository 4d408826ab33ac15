"""Gradient methods: exact where the model is linear, complete where they promise to be."""

import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.targets import Contrast, Item
from llm_influence.errors import ExplanationError
from llm_influence.modeling.model import log_odds
from llm_influence.rendering.batch import collate
from llm_influence.rendering.pieces import UnitPieces
from tests import tiny
from tests.attribution.stand_ins import bag_model, typed

TARGET = Item("i7")


def read(model, history):
    batch = collate(model.encoder.encode([history]))
    with torch.no_grad():
        return batch, model.embed(batch)


def log_odds_of_i7(model, batch, vectors):
    code = torch.tensor([int(model.catalogue.index(["i7"])[0])])
    with torch.no_grad():
        return float(log_odds(model(batch, vectors).item_logits, code))


@pytest.mark.parametrize(
    ("method", "options"),
    [("input_x_gradient", {}), ("integrated_gradients", {"steps": 1, "baseline": "zero"})],
)
def test_one_gradient_is_complete_on_a_linear_model(method, options):
    explainer = Explainer(bag_model(), method, **options)
    influence = explainer.explain(typed("i3", "i9", "i4"), Contrast("i5", "i6"))
    assert influence.quality.completeness_gap < 1e-5
    whole_input = method == "input_x_gradient"  # the other keeps the frame what it is
    assert (influence.base_value == 0) is (influence.frame_score != 0) is whole_input


@pytest.mark.parametrize(
    ("method", "options"),
    [("input_x_gradient", {}), ("integrated_gradients", {"baseline": "zero"})],
)
def test_a_backbone_that_feels_no_length_is_refused(log, method, options):
    model = tiny.tiny_model("modernbert", "token")
    with pytest.raises(ExplanationError, match=r"modernbert normalises.*baseline 'mean'"):
        Explainer(model, method, **options).explain(log.at(0), TARGET)


@pytest.mark.parametrize("method", ["input_x_gradient"])
def test_input_x_gradient_adds_up_to_the_slope_along_the_input(model, log, method):
    history = model.encoder.trim(log.at(0))
    influence = Explainer(model, method).explain(history, TARGET)
    batch, vectors = read(model, history)
    step = 1e-2
    up, down = (log_odds_of_i7(model, batch, vectors * (1 + s)) for s in (step, -step))
    slope = (up - down) / (2 * step)
    assert influence.scores.sum() + influence.frame_score == pytest.approx(slope, abs=1e-2)


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_the_completeness_gap_of_integrated_gradients_falls_with_steps(model, log, baseline):
    def error(steps):
        explainer = Explainer(model, "integrated_gradients", steps=steps, baseline=baseline)
        found = explainer.explain([log.at(0), log.at(3)], TARGET)
        assert [i.frame_score for i in found] == pytest.approx([0, 0], abs=1e-6)
        assert [i.quality.passes for i in found] == [2 * steps + 2] * 2
        return sum(abs(i.scores.sum() - (i.full_value - i.base_value)) for i in found)

    coarse, fine = error(1), error(32)
    assert fine < coarse / 5
    if baseline == "mean":  # the path from zero starts where RMSNorm is singular: it falls slowly
        assert fine < 0.02


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_the_baseline_moves_event_tokens_alone(model, log, baseline):
    history = model.encoder.trim(log.at(0))
    batch, vectors = read(model, history)
    event = (batch.event_index >= 0)[..., None]
    if isinstance(model.encoder.pieces, UnitPieces):
        fields = torch.from_numpy(model.encoder.pieces.fields)
        units = model.units(slice(None)).detach()
        rows = [units[fields == f].mean(0) for f in batch.field_index[0].clamp(min=0).tolist()]
        mean = torch.stack(rows)[None]
    else:
        mean = model.body.get_input_embeddings().weight.detach().mean(0).expand_as(vectors)
    starts = {"mean": torch.where(event, mean, vectors), "zero": vectors * ~event}
    explainer = Explainer(model, "integrated_gradients", steps=1, baseline=baseline)
    influence = explainer.explain(history, TARGET)
    base = log_odds_of_i7(model, batch, starts[baseline])
    assert influence.base_value == pytest.approx(base, abs=1e-4)
    full = log_odds_of_i7(model, batch, vectors)
    assert influence.full_value == pytest.approx(full, abs=1e-4)


def test_options_without_sense_are_refused(bert, log):
    with pytest.raises(ExplanationError, match=r"unknown baseline 'men'.*'mean', 'zero'"):
        Explainer(bert, "integrated_gradients", baseline="men").explain(log.at(0))
    with pytest.raises(ExplanationError, match="steps is 0"):
        Explainer(bert, "integrated_gradients", steps=0).explain(log.at(0))
