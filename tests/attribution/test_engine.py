"""Common beginnings are read once, and change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_influence.attribution import engine as module
from llm_influence.attribution import prefix_cache as prefix_reader
from llm_influence.attribution.engine import Engine
from llm_influence.attribution.prefix_cache import prefix_support
from llm_influence.attribution.prefix_tree import Sequences, plan_paths
from llm_influence.attribution.renderings import OWN, REMOVALS, Players, render
from llm_influence.attribution.target import bind
from llm_influence.attribution.value_function import ValueFunction
from tests.attribution.stand_ins import bag_model, typed


def subsets(players):
    return ((np.arange(2**players)[:, None] >> np.arange(players)) & 1).astype(bool)


def planned(sets):
    """Sequences of sets of one-token events, after one prompt token, and the plan to read them."""
    sequences = [[99, *np.flatnonzero(chosen)] for chosen in sets]
    lengths = np.array([len(s) for s in sequences])
    owner, tokens = np.repeat(np.arange(len(sets)), lengths), np.concatenate(sequences)
    records = np.stack([tokens, tokens % 99, np.full(len(tokens), OWN)], axis=1)
    made = Sequences.of(records, owner, tokens % 99, whole_events=False)
    return made, plan_paths(made.symbols, made.lengths)


@pytest.mark.parametrize("seed", range(5))
def test_every_token_lies_on_one_path_after_those_before_it(seed):
    sets = np.unique(np.random.default_rng(seed).random((30, 6)) < 0.7, axis=0)
    made, plan = planned(sets)
    level_of = np.full(len(plan.ends), -1)
    for row, start, level in zip(plan.rows, plan.starts, plan.levels, strict=True):
        own = plan.nodes[row, start : made.lengths[row]]
        assert (level_of[own] == -1).all()
        level_of[own] = level
    assert (level_of >= 0).all()
    for row, start, level in zip(plan.rows, plan.starts, plan.levels, strict=True):
        before = plan.nodes[row, :start]
        assert plan.needed[before].all()
        assert (level_of[before] < level).all()
    for row in range(len(sets)):  # equal beginnings share nodes, and only those do
        for other in range(row):
            same = (sets[row] == sets[other]).cumprod().sum()
            shared = 1 + min(sets[each][:same].sum() for each in (row, other))
            width = min(made.lengths[[row, other]])
            equal = plan.nodes[row, :width] == plan.nodes[other, :width]
            assert equal.sum() == shared
        assert plan.ends[plan.nodes[row, made.lengths[row] - 1]] == row


def test_all_coalitions_take_as_many_tokens_as_there_are_and_few_levels():
    _, plan = planned(subsets(8))
    assert len(plan.ends) == 2**8  # the empty one is the prompt's token
    assert plan.levels.max() <= 8


def test_leave_one_out_is_one_long_path_and_a_short_one_an_event():
    size = 9
    sets = np.concatenate([np.ones((1, size), dtype=bool), ~np.eye(size, dtype=bool)])
    _, plan = planned(sets)
    assert len(plan.ends) == 1 + size + size * (size - 1) // 2
    assert sorted(plan.levels.tolist()) == [0] + [1] * (size - 1)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_rows_budget_and_store_change_no_state(bert, log, data):
    """Several events of four tokens each, in which a token sees those after it in its event."""
    history = bert.encoder.trim(log.at(3))
    one = st.lists(st.booleans(), min_size=len(history), max_size=len(history))
    masks = [np.array(each) for each in data.draw(st.lists(one, min_size=1, max_size=12))]
    removal = data.draw(st.sampled_from(REMOVALS))
    read = render(bert.encoder, [history], Players(), [0] * len(masks), masks, removal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_reader, "ROW", data.draw(st.sampled_from([1, 40, 64])))
        patch.setattr(module, "WORTH", 0)
        patch.setattr(module, "STORE_BYTES", data.draw(st.sampled_from([1, 9000, 1 << 29])))
        budget = data.draw(st.sampled_from([1, 90, 4096]))
        found = Engine(bert, token_budget=budget).states(read)
    expected = Engine(bert, share=False).states(read)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_budget_bounds_every_batch(bert, log, monkeypatch):
    history = bert.encoder.trim(log.at(3))
    masks = list(subsets(len(history)))
    read = render(bert.encoder, [history], Players(), [0] * len(masks), masks, "mask")
    sizes, attend = [], bert.attend_pairs

    def counted(vectors, *rest):
        sizes.append(vectors.shape[0] * vectors.shape[1])
        return attend(vectors, *rest)

    monkeypatch.setattr(bert, "attend_pairs", counted)
    Engine(bert, token_budget=150).states(read)
    assert max(sizes) <= 150


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("budget", [None, 40])
def test_shared_prefixes_change_no_value(model, log, removal, budget):
    histories = [model.encoder.trim(log.at(row)) for row in (0, 3)]
    target = bind("top1", model, histories)
    sizes = [len(history) for history in histories]
    rng = np.random.default_rng(1)
    masks = [np.concatenate([~np.eye(n, dtype=bool), rng.random((12, n)) < 0.7]) for n in sizes]
    sharing, plain = Engine(model, token_budget=budget), Engine(model, share=False)
    ours, theirs = (
        ValueFunction(model, histories, target, removal, engine=engine)(masks)
        for engine in (sharing, plain)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    if prefix_support(model).works:
        assert sharing.tokens < plain.tokens / 1.3
    else:
        assert sharing.tokens == plain.tokens


def test_decoders_and_causal_encoders_share_and_others_are_found_out(model):
    expected = model.backbone.model.config.model_type in ("bert", "gpt2", "llama")
    assert prefix_support(model).works == expected
    assert not prefix_support(bag_model()).works  # keeps nothing, as its states come from elsewhere


@pytest.mark.parametrize("removal", REMOVALS)
def test_the_error_of_bfloat16_is_measured(model, log, removal):
    """Where the sample is all there is, the largest error is found itself."""
    histories = [model.encoder.trim(log.at(0))]
    target, masks = bind("i7", model, histories), [~np.eye(4, dtype=bool)]
    engine = Engine(model, dtype="bfloat16")
    assert np.isnan(engine.measured_error)
    rounded = ValueFunction(model, histories, target, removal, engine=engine)(masks)[0]
    exact = ValueFunction(model, histories, target, removal)
    worst = np.abs(exact(masks)[0] - rounded).max()
    assert 1e-6 < worst < 0.3
    assert engine.measured_error == pytest.approx(worst, abs=1e-4)
    assert exact.engine.measured_error == 0


def test_users_who_did_the_same_share_a_pass(bert):
    ours, theirs = typed("i3", "i9"), typed("i3", "i9", "i4")
    histories = [ours, theirs]
    engine = Engine(bert)
    values = ValueFunction(bert, histories, bind("i7", bert, histories), engine=engine)
    masks = [np.ones((1, 2), dtype=bool), np.array([[True, True, False]])]
    found = values(masks)
    assert found[0] == found[1]
    assert engine.tokens == len(bert.encoder.encode([ours]).input_ids)
