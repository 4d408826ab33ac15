"""Gradient methods: exact where the model is linear, complete where they promise to be."""

import functools

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.gradients import Surface
from llm_influence.attribution.integrated import _random_baselines
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.renderings import Players
from llm_influence.attribution.target import Contrast, bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import log_odds
from llm_influence.rendering.token_cache import IdTokenCache
from tests import tiny
from tests.attribution.stand_ins import (
    TARGET,
    a_task,
    bag_model,
    log_odds_of_i7,
    read,
    run_method,
    typed,
)


@pytest.mark.parametrize(
    ("method", "options"),
    [("input_x_gradient", {}), ("integrated_gradients", {"steps": 1, "baseline": "zero"})],
)
def test_one_gradient_is_complete_on_a_linear_model(method, options):
    explainer = Explainer(bag_model(), method, **options)
    influence = explainer.explain(typed("i3", "i9", "i4"), Contrast("i5", "i6"))
    assert influence.quality.completeness_gap < 1e-5
    whole_input = method == "input_x_gradient"  # the other keeps the prompt what it is
    assert (influence.base_value == 0) is (influence.prompt_score != 0) is whole_input


def test_input_x_gradient_adds_up_to_the_slope_along_the_input(model, log):
    if model.backbone.loses_length:
        with pytest.raises(ExplanationError, match="normalises"):
            Explainer(model, "input_x_gradient")
        return
    history = model.encoder.trim(log.at(0))
    influence = Explainer(model, "input_x_gradient").explain(history, TARGET)
    batch, vectors = read(model, history)
    step = 1e-2
    up, down = (log_odds_of_i7(model, batch, vectors * (1 + s)) for s in (step, -step))
    slope = (up - down) / (2 * step)
    assert influence.values.sum() + influence.prompt_score == pytest.approx(slope, abs=1e-2)


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_the_completeness_gap_of_integrated_gradients_falls_with_steps(model, log, baseline):
    if baseline == "zero" and model.backbone.loses_length:
        with pytest.raises(ExplanationError, match="normalises"):
            Explainer(model, "integrated_gradients", baseline=baseline)
        return

    def error(steps):
        explainer = Explainer(model, "integrated_gradients", steps=steps, baseline=baseline)
        found = explainer.explain([log.at(0), log.at(3)], TARGET)
        assert [i.prompt_score for i in found] == pytest.approx([0, 0], abs=1e-6)
        assert [i.quality.evaluations for i in found] == [2 * steps + 2] * 2
        return sum(abs(i.values.sum() - (i.full_value - i.base_value)) for i in found)

    coarse, fine = error(1), error(32)
    assert fine < coarse / 5
    if baseline == "mean":  # the path from zero starts where RMSNorm is singular: it falls slowly
        assert fine < 0.02


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_the_baseline_moves_event_tokens_alone(model, log, baseline):
    if baseline == "zero" and model.backbone.loses_length:
        with pytest.raises(ExplanationError, match="normalises"):
            Explainer(model, "integrated_gradients", baseline=baseline)
        return
    history = model.encoder.trim(log.at(0))
    batch, vectors = read(model, history)
    event = (batch.event_index >= 0)[..., None]
    if isinstance(model.encoder.token_cache, IdTokenCache):
        fields = torch.from_numpy(model.encoder.token_cache.fields)
        units = model.embeddings(slice(None)).detach()
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


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("integrated_gradients", {"baseline": "men"}, r"baseline is 'men'.*'mean' or 'zero'"),
        ("integrated_gradients", {"steps": 0}, "steps is 0"),
        ("integrated_gradients", {"max_steps": 4}, "max_steps is 4.*at least 5"),
        ("integrated_gradients", {"tolerance": 0.0}, "tolerance is 0.0"),
        (
            "event_path_integrated_gradients",
            {"order": "newest"},
            "order is 'newest'.*'newest_first'",
        ),
        ("smoothgrad", {"samples": 1}, "samples is 1.*at least 2"),
        ("expected_gradients", {"samples": 1}, "samples is 1.*at least 2"),
    ],
)
def test_options_without_sense_are_refused(bert, log, method, options, message):
    with pytest.raises(ExplanationError, match=message):
        Explainer(bert, method, **options).explain(log.at(0))


# --- draws ----------------------------------------------------------------------------------


def test_without_noise_smoothgrad_is_input_x_gradient_and_has_no_error(bert, log):
    plain = run_method("input_x_gradient", bert, log)
    still = run_method("smoothgrad", bert, log, noise=0.0, samples=2)
    noisy = run_method("smoothgrad", bert, log, noise=0.5, samples=3)
    for row, scores in enumerate(plain.scores):
        np.testing.assert_allclose(still.scores[row], scores, atol=1e-5)
        assert still.standard_errors[row].max() < 1e-6 < noisy.standard_errors[row].min()
        assert np.abs(noisy.scores[row] - scores).max() > 1e-3


def test_saliency_is_the_share_of_the_gradients_length(bert, log):
    history = bert.encoder.trim(log.at(0))
    batch, vectors = read(bert, history)
    vectors.requires_grad_()
    code = torch.tensor([int(bert.catalogue.index(["i7"])[0])])
    (gradient,) = torch.autograd.grad(log_odds(bert(batch, vectors).item_logits, code), vectors)
    lengths, prompt = batch.event_sums(gradient.norm(dim=-1))
    found = Explainer(bert, "saliency").explain(history, TARGET)
    total = float(lengths.sum() + prompt)
    np.testing.assert_allclose(found.values, lengths[0].numpy() / total, rtol=1e-4)


@pytest.mark.parametrize("method", ["smoothgrad", "expected_gradients"])
def test_draws_depend_on_the_seed_and_the_user_alone(bert, log, method):
    first = run_method(method, bert, log, rows=(0, 7), samples=2)
    turned = run_method(method, bert, log, rows=(7, 0), samples=2)
    other = run_method(method, bert, log, rows=(0, 7), samples=2, seed=1)
    for ours, theirs, others in zip(first.scores, turned.scores[::-1], other.scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(ours - others).max() > 1e-4


def test_expected_gradients_are_complete_on_average_and_honest_about_their_error(log):
    model = tiny.tiny_model("gpt2", "token")
    found = run_method("expected_gradients", model, log, rows=(0,), samples=120)
    total = found.scores[0].sum() + found.prompt[0]
    error = np.sqrt((found.standard_errors[0] ** 2).sum())
    assert abs(total - (found.full[0] - found.base[0])) < 4 * error
    few = run_method("expected_gradients", model, log, rows=(0,), samples=12)
    off = np.abs(few.scores[0] - found.scores[0]) / few.standard_errors[0]
    assert (off < 4).all()
    ratio = few.standard_errors[0].mean() / found.standard_errors[0].mean()
    assert ratio == pytest.approx(10**0.5, rel=0.5)


def test_a_drawn_baseline_keeps_the_frame_and_every_field_in_its_place(log):
    model = InfluenceModel.build(tiny.run_config(rendering={"template": "fused"}), log).eval()
    task = a_task(model, [log.at(0), log.at(3)])
    surface = Surface(task)
    seen = []
    embed = model.embed
    model.embed = lambda batch: seen.append(batch) or embed(batch)
    _random_baselines(surface, task.generators())
    del model.embed
    (drawn,), real, pieces = seen, task.batch, model.encoder.token_cache
    prompt = real.event_index < 0
    assert torch.equal(drawn.input_ids[prompt], real.input_ids[prompt])
    assert not torch.equal(drawn.input_ids, real.input_ids)
    assert set(drawn.input_ids[~prompt].tolist()) <= set(pieces.ids_of("item"))
    assert torch.equal(drawn.added_ids[prompt], real.added_ids[prompt])
    for column, field in enumerate(model.encoder.template.added):
        units = drawn.added_ids[..., column][~prompt]
        assert set(units.tolist()) <= set(pieces.ids_of(field))


# --- fields ---------------------------------------------------------------------------------

FIELDS = Players("fields")
BY_FIELD = {
    "integrated_gradients": {"steps": 2},
    "expected_gradients": {"samples": 2},
    "input_x_gradient": {},
    "smoothgrad": {"samples": 2},
}
by_field = pytest.mark.parametrize("method", BY_FIELD)


def test_the_registry_says_which_gradients_can_be_taken_apart():
    able = {
        name
        for name, spec in METHODS.items()
        if spec.family == "gradient" and str(FIELDS) in spec.players
    }
    assert able == BY_FIELD.keys()


@functools.cache
def with_residuals(template, style="token"):
    sections = {"template": template, "style": style}
    model = InfluenceModel.build(tiny.run_config(rendering=sections), tiny.small_log()).eval()
    with torch.no_grad():
        torch.manual_seed(0)
        model.embeddings.residual.add_(torch.randn_like(model.embeddings.residual))
    return model


@by_field
@pytest.mark.parametrize(
    ("template", "style", "told"),
    [
        ("fused", "token", ("behavior", "item", "gap", "value")),
        ("full", "token", ("behavior", "item", "gap", "value")),
        ("item", "token", ("item",)),
        ("prose", "text", ("behavior", "text", "gap", "value")),
    ],
)
def test_the_fields_of_an_event_add_up_to_the_event(log, method, template, style, told):
    model, histories = with_residuals(template, style), [log.at(0), log.at(7)]
    options = BY_FIELD[method]
    events = Explainer(model, method, **options).explain(histories, TARGET)
    fields = Explainer(model, method, players=FIELDS, **options).explain(histories, TARGET)
    for ours, theirs in zip(fields, events, strict=True):
        assert [player.field for player in ours.players] == [*told] * len(ours.events)
        added = ours.by_event()
        scale = np.abs(theirs.values).max()
        np.testing.assert_allclose(added.values, theirs.values, atol=1e-4 * scale)
        for name in ("prompt_score", "base_value", "full_value"):
            assert getattr(added, name) == pytest.approx(getattr(theirs, name), abs=1e-4 * scale)
        each = np.abs(ours.values.reshape(-1, len(told)))
        assert (each.max(axis=0) > 1e-5 * scale).all()  # an untrained model reads the end
        assert ours.quality.completeness_gap == pytest.approx(
            theirs.quality.completeness_gap, abs=1e-3
        )


@pytest.mark.parametrize("template", ["fused", "full"])
def test_integrated_gradients_of_fields_are_complete_between_the_ends_of_replacing(log, template):
    """From a history of neutral parts to the whole one, as `replace` puts them in."""
    model, histories = with_residuals(template), [log.at(0), log.at(7)]
    explainer = Explainer(model, "integrated_gradients", players=FIELDS, tolerance=0.001)
    values = ValueFunction(
        model, histories, bind(TARGET, model, histories), "replace", players=FIELDS
    )
    for found, base, full in zip(explainer.explain(histories, TARGET), *values.ends(), strict=True):
        assert found.base_value == pytest.approx(base, abs=1e-4)
        assert found.full_value == pytest.approx(full, abs=1e-4)
        assert found.quality.converged
        assert found.values.sum() == pytest.approx(full - base, rel=2e-3)


@pytest.mark.parametrize("template", ["fused", "full"])
def test_in_a_linear_model_a_field_gets_what_is_lost_without_it(log, template):
    model, history = bag_model(template), log.at(0)
    how = {"players": FIELDS, "fidelity_masks": 0}
    target = Contrast("i5", "i6")
    known = Explainer(model, "leave_one_out", **how).explain(history, target).values
    found = Explainer(model, "integrated_gradients", **how).explain(history, target).values
    assert (np.abs(known).reshape(-1, 4).max(axis=0) > 1e-3).all()
    np.testing.assert_allclose(found, known, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_drawn_field_is_compared_with_the_field_that_was_drawn(log):
    """Expected gradients of a linear model: each part less the mean of all that may stand there."""
    model, history, target = bag_model("fused"), log.at(0), Contrast("i5", "i6")
    explainer = Explainer(model, "expected_gradients", samples=300, players=FIELDS)
    found = explainer.explain(history, target)
    chosen, other = model.catalogue.index(["i5", "i6"])
    with torch.no_grad():
        items = model.item_vectors()
        direction = (items[chosen] - items[other]) @ model.item_head.project.weight
        batch = read(model, history)[0]
        place = model.encoder.template.added.index("behavior")
        ids = batch.added_ids[0, batch.event_index[0] >= 0, place]
        learned = model.embeddings.residual @ direction
        units = model.encoder.token_cache.ids_of("behavior")
        expected = (learned[ids] - learned[units.start : units.stop].mean()).numpy()
    behaviors = [player.field == "behavior" for player in found.players]
    errors = np.abs(found.values[behaviors] - expected) / found.standard_errors[behaviors]
    assert np.abs(expected).min() > 1e-3
    assert (errors < 4).all()


@pytest.mark.parametrize(
    ("method", "players"),
    [
        ("saliency", FIELDS),
        ("event_path_integrated_gradients", FIELDS),
        ("attention_x_gradient", FIELDS),
        ("integrated_gradients", Players("fields", user=True)),
        ("input_x_gradient", Players(user=True)),
    ],
)
def test_players_that_a_method_cannot_explain_are_refused(bert, method, players):
    with pytest.raises(ExplanationError, match=rf"{method} gives no scores to '.*shapley"):
        Explainer(bert, method, players=players)
    with pytest.raises(ExplanationError, match=rf"{method} gives no scores"):
        Explainer(bert, "leave_one_out", players=players, agree_with=method)
