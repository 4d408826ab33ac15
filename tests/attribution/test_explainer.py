"""Histories in, records out."""

import copy

import numpy as np
import pytest
import torch

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.interactions import adapter_effect
from llm_influence.attribution.methods import METHODS
from llm_influence.attribution.target import Behavior, Contrast, Item, Slate
from llm_influence.errors import ExplanationError
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import Event, History
from tests import tiny


def test_one_history_a_list_and_a_whole_log_give_the_same_records(bert, log):
    explainer = Explainer(bert, "leave_one_out", batch_size=5)
    whole = explainer.explain(log)
    listed = explainer.explain(list(log))
    assert [i.user_id for i in whole] == [h.user_id for h in log]
    assert len(whole) == len(listed) == len(log)
    for a, b in zip(whole, listed, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert list(a.events) == list(b.events)
    one = explainer.explain(log.at(7))
    assert isinstance(one, Influence)
    np.testing.assert_allclose(one.values, whole[7].values, atol=1e-4)
    assert explainer.explain([]) == []


def test_several_targets_give_what_each_alone_gives(model, log):
    targets = ["top1", "i7", Behavior("cart"), Contrast("i5", "i6"), Slate(4)]
    explainer = Explainer(model, batch_size=2, fidelity_masks=4, agree_with="random")
    histories = [log.at(row) for row in (0, 9, 3)]
    found = explainer.explain_many(histories, targets)
    alone = [explainer.explain(histories, target) for target in targets]
    for row, records in enumerate(found):
        for record, expected in zip(records, [each[row] for each in alone], strict=True):
            np.testing.assert_allclose(record.values, expected.values, atol=1e-4)
            assert record.full_value == pytest.approx(expected.full_value, abs=1e-4)
            assert record.quality.lds == pytest.approx(expected.quality.lds, nan_ok=True)
            assert record.quality.agreement == pytest.approx(
                expected.quality.agreement, nan_ok=True
            )
            for name in ("user_id", "target", "target_id", "target_name", "events"):
                assert getattr(record, name) == getattr(expected, name)
    one = explainer.explain_many(log.at(9), targets[:2])
    assert [record.target_id for record in one] == [found[1][0].target_id, "i7"]
    assert explainer.explain_many([], targets) == []
    assert explainer.explain_many(log.at(9), []) == []


def test_several_targets_share_the_rendering(bert, log, monkeypatch):
    encode, rendered = bert.encoder.encode, []
    monkeypatch.setattr(
        bert.encoder,
        "encode",
        lambda histories: rendered.append(len(histories)) or encode(histories),
    )
    explainer = Explainer(bert, "integrated_gradients", steps=2, fidelity_masks=0)

    def renderings(*targets):
        rendered.clear()
        explainer.explain_many(log.at(0), targets)
        return len(rendered)

    assert renderings("i7", "i8", "i9") == renderings("i7")


def test_events_carry_their_titles(bert, log):
    influence = Explainer(bert, "recency").explain(log.at(0), "i7")
    titles = dict(zip(bert.catalogue.ids.to_pylist(), bert.catalogue.titles, strict=True))
    assert [e.title for e in influence.events] == [titles[e.item] for e in influence.events]
    assert (influence.target, influence.target_id) == ("item", "i7")
    assert influence.target_name == titles["i7"]


def test_events_before_the_context_are_counted_and_still_count_as_seen(bert, log):
    recent = log.at(9).keep(slice(-8, None))
    best, second = bert.recommend(recent, 2)
    ids = set(recent.item_ids()) | {best.item, second.item}
    other = next(item for item in bert.catalogue.ids.to_pylist() if item not in ids)
    old = [Event(item, "click", 10) for item in (best.item, other)]
    whole = History.from_events("u", [*old, *recent.events()], recent.user)
    influence = Explainer(bert, "leave_one_out").explain(whole)
    assert influence.quality.left_out == 2
    assert [e.item for e in influence.events] == recent.item_ids()
    assert influence.target_id == second.item == bert.recommend(whole, 1)[0].item
    same = Explainer(bert, "leave_one_out").explain(recent, second.item)
    np.testing.assert_allclose(influence.values, same.values, atol=1e-4)
    assert same.quality.left_out == 0


def test_a_history_without_events_is_refused_and_its_user_named(bert, log):
    bert.train()
    try:
        with pytest.raises(ExplanationError, match=r"user 'nobody'.*no event"):
            Explainer(bert).explain([log.at(0), History.from_events("nobody", [])])
        with pytest.raises(ExplanationError, match="no item"):
            Explainer(bert).explain(log.at(0), "i99")
        assert bert.training  # put back after an error too
    finally:
        bert.eval()


def test_an_unknown_method_is_named_with_all_methods(bert):
    with pytest.raises(ExplanationError) as raised:
        Explainer(bert, "leave_one_ou")
    assert all(repr(name) in str(raised.value) for name in METHODS)
    assert "mean 'leave_one_out'" in str(raised.value)


@pytest.mark.parametrize(
    ("method", "arguments", "named"),
    [
        (
            "integrated_gradients",
            {"step": 4},
            ["'step'", "'baseline', 'max_steps'", "mean 'steps'"],
        ),
        ("recency", {"steps": 4}, ["'steps'", "nothing"]),
        ("leave_one_out", {"removal": "dropp"}, ["'dropp'", "'drop', 'mask'", "mean 'drop'"]),
        ("input_x_gradient", {"removal": "drop"}, ["'drop'", "nothing"]),
    ],
)
def test_an_unknown_option_or_removal_is_named_with_the_valid_ones(bert, method, arguments, named):
    with pytest.raises(ExplanationError) as raised:
        Explainer(bert, method, **arguments)
    assert all(part in str(raised.value) for part in [method, *named])


# --- the adapter on and off ---


def tuned_model(kind, log, noise=0.3):
    """A model whose adapter is away from its start, where it does nothing."""
    config = tiny.run_config(model={"adapter": {"kind": kind}})
    model = InfluenceModel.build(config, log).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.body.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or ".up." in name):
                parameter += noise * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("lora", "integrated_gradients"),
        ("bottleneck", "leave_one_out"),
        pytest.param("lora", "leave_one_out", marks=pytest.mark.slow),
        pytest.param("bottleneck", "integrated_gradients", marks=pytest.mark.slow),
    ],
)
def test_without_the_adapter_is_a_model_whose_adapter_does_nothing(log, kind, method):
    model = tuned_model(kind, log)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    histories = [log.at(0), log.at(5), log.at(3)]
    effects = adapter_effect(Explainer(model, method, batch_size=2), histories)
    idle = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in idle.body.named_parameters():
            if "lora_B" in name or ".up." in name:
                parameter.zero_()
    for history, effect in zip(histories, effects, strict=True):
        best = Item(model.recommend(history, 1)[0].item)
        for found, expected in (
            (effect.tuned, Explainer(model, method).explain(history, best)),
            (effect.untuned, Explainer(idle, method).explain(history, best)),
        ):
            np.testing.assert_allclose(found.values, expected.values, atol=1e-4)
            assert found.full_value == pytest.approx(expected.full_value, abs=1e-4)
            assert found.target_id == best.id
        np.testing.assert_array_equal(
            effect.difference, effect.tuned.values - effect.untuned.values
        )
        assert np.abs(effect.difference).max() > 1e-3
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    one = adapter_effect(Explainer(model, method), histories[1])
    np.testing.assert_allclose(one.difference, effects[1].difference, atol=1e-4)


@pytest.mark.parametrize(("kind", "said"), [("full", "no untuned"), ("frozen", "nothing inside")])
def test_a_model_without_an_adapter_to_switch_off_is_refused(log, kind, said):
    config = tiny.run_config(model={"adapter": {"kind": kind}})
    explainer = Explainer(InfluenceModel.build(config, log))
    with pytest.raises(ExplanationError, match=f"'{kind}': .*{said}"):
        adapter_effect(explainer, log.at(0))
