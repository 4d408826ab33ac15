"""What every registered method promises, on every backbone family and rendering style."""

import functools

import numpy as np
import pytest
import torch

from llm_influence import Contrast, Explainer
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.methods import METHODS, find_method, make_method
from llm_influence.attribution.renderings import REMOVALS
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from llm_influence.errors import ExplanationError
from llm_influence.faithfulness.evaluate import evaluate_faithfulness
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from tests import tiny
from tests.attribution.stand_ins import FAST, bag_model, model_of, typed, weights

METHOD_CASES = [(name, r) for name, spec in METHODS.items() for r in spec.removals or (None,)]
OPTIONS = {
    "smoothgrad": {"samples": 3},
    "expected_gradients": {"samples": 3},
    "shapley": {"evaluations": 40},
    "permutation_shapley": {"evaluations": 40},
    "coarse_to_fine": {"evaluations": 30, "blocks": 2},  # 8 events are long, 4 and 6 are short
    "group_shapley": {"evaluations": 32, "alone": 3},
    "sparse_surrogate": {"evaluations": 40},
}
"""Fewer draws than by default: what is promised here holds for any number."""
DRAWN = ("expected_gradients",)
"""Their baselines are drawn at random, so what a zero baseline gives holds only on average."""
OFTEN_SHORT = {
    "exact_shapley",
    "shapley",
    "permutation_shapley",
    "coarse_to_fine",
    "group_shapley",
    "sparse_surrogate",
}
"""Methods that read histories without their last event, where another is the last."""
USERS = ("u0", "u7", "u2")  # 4, 11 (longer than the context) and 6 events
CELLS = [kind for kind, _ in tiny.CELLS]
TRANSFORMERS = [(kind, style) for kind in tiny.BACKBONES for style in ("token", "text")]
KINDS = [*TRANSFORMERS, *tiny.CELLS]


def refused(kind: str, style: str, method: str, options: dict | None = None) -> bool:
    """Whether this kind of model cannot be explained by the method."""
    if kind in CELLS:
        no_text = method == "item_similarity" and style == "token"
        return find_method(method).family == "attention" or no_text
    chosen = make_method(method, options)
    to_zero = chosen.to_zero
    moves = to_zero is not None and all(getattr(chosen, n) == v for n, v in to_zero.items())
    return kind == "modernbert" and moves


def is_fast(kind: tuple[str, str], removal: str | None) -> bool:
    """Whether `make test` runs the case: every removal on one model, the default on the others."""
    return kind == FAST[0] or (kind in FAST and removal in (None, "drop"))


def cases(kinds, methods):
    """All of ``methods`` (name, removal, ...) on the kinds of models that they serve."""
    return [
        pytest.param(
            kind,
            *case,
            marks=() if is_fast(kind, case[1]) else pytest.mark.slow,
            id="-".join(map(str, (*kind, *case))),
        )
        for kind in kinds
        for case in methods
        if not refused(*kind, case[0], *case[2:])
    ]


every_case = pytest.mark.parametrize(("kind", "method", "removal"), cases(KINDS, METHOD_CASES))
IN_TARGET_UNITS = [
    (name, removal, {"baseline": "zero"} if "baseline" in METHODS[name].defaults() else {})
    for name, removal in METHOD_CASES
    if METHODS[name].units == "target"
    and METHODS[name].family != "attention"  # blind to what passes by the attention
    and name not in DRAWN
]
from_nothing = pytest.mark.parametrize(
    ("method", "removal", "options"), [case for case in IN_TARGET_UNITS if case[1] != "replace"]
)
from_neutral = pytest.mark.parametrize(
    ("method", "removal", "options"), [case for case in IN_TARGET_UNITS if case[1] == "replace"]
)
"""Where a neutral event stands in, scores are compared with its score and not with nothing."""


def explainer(model: InfluenceModel, method: str, removal: str | None, **how: int) -> Explainer:
    return Explainer(model, method, removal=removal, **OPTIONS.get(method, {}), **how)


@functools.cache
def explained(model: InfluenceModel, method: str, removal: str | None) -> list[Influence]:
    log = tiny.small_log()
    return explainer(model, method, removal, seed=5).explain([log[u] for u in USERS])


bag = functools.cache(bag_model)


@functools.cache
def without_effect(item: str) -> InfluenceModel:
    """A linear model in which an item's vector is zero."""
    model = bag_model()
    row = model.first_item + int(model.catalogue.index([item])[0])
    with torch.no_grad():
        model.embeddings.words[row] = 0
        model.embeddings.residual[row] = 0
    return model


@functools.cache
def ignoring(kind: tuple[str, str]) -> InfluenceModel:
    """A model that predicts the same after any history."""
    model = tiny.tiny_model(*kind)
    with torch.no_grad():
        model.item_head.project.weight.zero_()
        model.item_head.project.bias.add_(1.0)
    return model


@functools.cache
def last_event_alone(kind: str) -> InfluenceModel:
    """A real model whose answer depends on the last event and on no other.

    Its attention adds nothing and it has no positions, so a state is a function of its own token.
    """
    sections = {"rendering": {"template": "item"}, "model": {"adapter": {"kind": "frozen"}}}
    model = InfluenceModel.build(tiny.run_config(kind, **sections), tiny.small_log()).eval()
    attention = ("attention.output.dense", "o_proj", "attn.c_proj", "attn.Wo")
    zeroed = (*attention, "position_embeddings", "wpe")
    for name, parameter in model.body.named_parameters():
        if any(part in name for part in zeroed):
            parameter.data.zero_()
    return model


def assert_same(ours: Influence, theirs: Influence, tolerance: float = 1e-4) -> None:
    scale = max(1.0, np.abs(theirs.values).max())
    np.testing.assert_allclose(ours.values, theirs.values, atol=tolerance * scale)
    for name in ("prompt_score", "base_value", "full_value"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=tolerance * scale)
    assert ours.target_id == theirs.target_id
    for name in ("evaluations", "card_evaluations", "fidelity_masks"):
        assert getattr(ours.quality, name) == getattr(theirs.quality, name)
    # a rank correlation jumps where rounding turns two values that are almost equal
    assert ours.quality.lds == pytest.approx(theirs.quality.lds, abs=0.03, nan_ok=True)


def promises_of_scores(model, log, method, removal):
    for user, influence in zip(USERS, explained(model, method, removal), strict=True):
        history, card = log[user], influence.quality
        assert np.isfinite(influence.values).all()
        assert len(influence.values) == len(influence.events)
        events = [event.item for event in influence.events]
        assert events == history.item_ids()[-len(events) :]
        assert card.left_out == len(history) - len(events)
        assert (card.method, card.removal) == (method, removal or "none")
        assert (card.units, card.seed) == (METHODS[method].units, 5)
        assert card.evaluations >= 2
        assert influence.target_id == model.recommend(history, 1)[0].item
        assert influence.prediction == pytest.approx(1 / (1 + np.exp(-influence.full_value)))
        moved = influence.full_value - influence.base_value
        total = influence.values.sum() + influence.prompt_score
        assert card.completeness_gap == pytest.approx(abs(total - moved) / abs(moved))
        if card.units == "share":
            assert (influence.values >= 0).all()
            assert total == pytest.approx(1, abs=1e-5)


@every_case
def test_every_event_gets_a_finite_score_and_the_card_says_how(log, kind, method, removal):
    promises_of_scores(model_of(*kind), log, method, removal)


def promises_of_batches(model, log, method, removal):
    for user, together in zip(USERS, explained(model, method, removal), strict=True):
        alone = explainer(model, method, removal, seed=5, batch_size=1).explain(log[user])
        assert_same(alone, together)


@every_case
def test_batch_and_padding_change_nothing(log, kind, method, removal):
    promises_of_batches(model_of(*kind), log, method, removal)


@every_case
def test_a_model_in_training_is_explained_without_dropout_and_left_as_it_was(
    log, kind, method, removal
):
    """And the same seed gives the same scores, to the last digit."""
    model = model_of(*kind)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    attention = model.body.config._attn_implementation
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = explainer(model, method, removal, seed=5)
    model.train()
    try:
        influences = again.explain([log[user] for user in USERS])
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    for ours, theirs in zip(influences, explained(model, method, removal), strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert model.body.config._attn_implementation == attention
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [name for name, spec in METHODS.items() if spec.family == "attention"]
)
def test_methods_that_read_attention_refuse_a_recurrent_model(recurrence, log, method):
    with pytest.raises(ExplanationError, match=r"'recurrence' does not attend.*leave_one_out"):
        Explainer(recurrence, method)
    with pytest.raises(ExplanationError, match="does not attend"):
        Explainer(recurrence, agree_with=method)
    with pytest.raises(ExplanationError, match="does not attend"):
        evaluate_faithfulness(recurrence, [log.at(0)], [method])


@pytest.mark.parametrize("method", [n for n, spec in METHODS.items() if spec.to_zero is not None])
def test_a_backbone_that_feels_no_length_is_refused(log, method):
    model, options = model_of("modernbert", "token"), METHODS[method].to_zero
    with pytest.raises(ExplanationError, match=r"modernbert normalises.*baseline 'mean'"):
        Explainer(model, method, **options)


def test_the_gates_of_a_recurrence_stand_beside_its_scores(recurrence, bert, log):
    found = Explainer(recurrence, "leave_one_out").explain([log.at(0), log.at(3)])
    for record, history in zip(found, (log.at(0), log.at(3)), strict=True):
        gates = recurrence.gates(history).mean(dim=1).numpy()
        assert record.gates.shape == record.values.shape
        np.testing.assert_allclose(record.gates, gates, rtol=1e-4)
    assert Explainer(bert, "leave_one_out").explain(log.at(0)).gates is None


@pytest.mark.parametrize("removal", REMOVALS)
def test_a_recurrent_model_is_read_whole_whether_prefixes_may_be_shared_or_not(
    recurrence, log, removal
):
    masks = [np.tri(4, 4, dtype=bool)]
    bound = bind("i7", recurrence, [log["u0"]])
    shared, whole = (
        ValueFunction(
            recurrence,
            [log["u0"]],
            bound,
            removal,
            engine=Engine(recurrence, share=share),
        )(masks)[0]
        for share in (True, False)
    )
    np.testing.assert_allclose(shared, whole, atol=1e-5)
    assert np.ptp(whole) > 1e-2


# --- families beside those that every method is tried on -------------------------------------

ELSEWHERE = (
    "integrated_gradients",
    "event_path_integrated_gradients",
    "expected_gradients",
    "input_x_gradient",
    "attention_last",
    "attention_rollout",
    "attention_flow",
    "attention_value_norm",
    "attention_gradient",
    "attention_x_gradient",
)


@pytest.fixture(scope="module", params=[*tiny.OTHER_BACKBONES, "bert that remembers"])
def other_family(request):
    kind, *remembers = request.param.split(" that ")
    return tiny.tiny_model(kind, "token", item_head={"memory": {"enabled": bool(remembers)}})


@pytest.mark.slow
@pytest.mark.parametrize("method", ELSEWHERE)
def test_other_families_keep_the_contract(other_family, log, method):
    promises_of_scores(other_family, log, method, None)
    promises_of_batches(other_family, log, method, None)
    gaps = [record.quality.completeness_gap for record in explained(other_family, method, None)]
    promised = {"integrated_gradients": 0.01, "event_path_integrated_gradients": 1e-6}
    assert max(gaps) <= promised.get(method, np.inf)


# --- truths that hold on a model whose answer is a sum over events --------------------------


@from_nothing
def test_scores_are_the_weights_of_a_linear_model(method, removal, options):
    model, history = bag(), typed("i3", "i9", "i4", "i12")
    found = Explainer(model, method, removal=removal, **options).explain(
        history, Contrast("i5", "i6")
    )
    known = weights(model, history, "i5", "i6")
    assert np.abs(known).min() > 1e-2
    np.testing.assert_allclose(found.values, known, rtol=1e-3, atol=1e-4)


@from_neutral
def test_replaced_events_get_their_weights_less_that_of_a_neutral_event(method, removal, options):
    model, history = bag(), typed("i3", "i9", "i4", "i12")
    found = Explainer(model, method, removal=removal, **options).explain(
        history, Contrast("i5", "i6")
    )
    less = found.values - weights(model, history, "i5", "i6")
    np.testing.assert_allclose(less, less[0], rtol=1e-3, atol=1e-4)
    assert abs(less[0]) > 1e-3


@from_nothing
def test_an_event_without_effect_gets_nothing(method, removal, options):
    found = Explainer(without_effect("i9"), method, removal=removal, **options).explain(
        typed("i3", "i9", "i4"), "i5"
    )
    assert found.values[1] == 0
    assert np.abs(found.values[[0, 2]]).min() > 1e-3


@pytest.mark.parametrize(
    ("kind", "method", "removal", "options"),
    cases(
        [(kind, "token") for kind in tiny.BACKBONES],
        [case for case in IN_TARGET_UNITS if case[0] not in OFTEN_SHORT],
    ),
)
@pytest.mark.parametrize("target", ["i7", "cart"])
def test_events_that_a_transformer_does_not_attend_to_get_nothing(
    log, kind, method, removal, options, target
):
    model = last_event_alone(kind[0])
    how = Explainer(model, method, removal=removal, **options)
    scores = how.explain(log["u2"], target).values
    np.testing.assert_allclose(scores[:-1], 0, atol=1e-5)
    assert abs(scores[-1]) > 1e-3


@pytest.mark.parametrize(
    ("method", "removal", "options"),
    [case for case in IN_TARGET_UNITS if case[0] != "event_path_integrated_gradients"],
)  # to which the order of events matters
def test_the_same_event_twice_gets_the_same_twice(method, removal, options):
    found = Explainer(bag(), method, removal=removal, **options).explain(
        typed("i9", "i3", "i9", "i4"), "i5"
    )
    assert found.values[0] == pytest.approx(found.values[2], rel=1e-3)
    assert abs(found.values[0] - found.values[1]) > 1e-3


@pytest.mark.parametrize(("kind", "method", "removal", "options"), cases(KINDS, IN_TARGET_UNITS))
def test_a_prediction_that_ignores_the_history_gives_nothing_to_any_event(
    log, kind, method, removal, options
):
    model = ignoring(kind)
    influence = Explainer(model, method, removal=removal, **options).explain(log["u0"])
    np.testing.assert_array_equal(influence.values, 0)
    assert np.isnan(influence.quality.completeness_gap)
