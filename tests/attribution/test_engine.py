"""Common beginnings are read once, and change nothing."""

import numpy as np
import pytest

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.prefix_reader import keeps_beginnings
from llm_influence.attribution.prefixes import count_tokens, paths
from llm_influence.attribution.renderings import REMOVALS
from llm_influence.attribution.targets import bind
from llm_influence.attribution.value_function import ValueFunction
from tests.attribution.stand_ins import bag_model, typed


def subsets(players):
    return ((np.arange(2**players)[:, None] >> np.arange(players)) & 1).astype(bool)


def as_tokens(sets):
    """The tokens of sets of one-token events, after one frame token 99."""
    sequences = [[99, *np.flatnonzero(chosen)] for chosen in sets]
    owner = np.repeat(np.arange(len(sets)), [len(s) for s in sequences])
    tokens = np.concatenate(sequences)
    event = np.concatenate([[-1, *range(len(s) - 1)] for s in sequences])
    return tokens[:, None], owner, event


def walk(some, before):
    """Every sequence that a tree of paths spells, by number."""
    for path in some:
        start = before[: path.depth]
        for sequence, place in path.ends:
            yield sequence, [*start, *path.tokens[: place + 1]]
        yield from walk(path.children, [*start, *path.tokens])


def levels(some):
    return 1 + max((levels(path.children) for path in some), default=0)


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_of_paths_spells_every_sequence(seed):
    rng = np.random.default_rng(seed)
    sets = rng.random((30, 6)) < 0.7
    tokens, owner, event = as_tokens(sets)
    found = dict(walk(paths(tokens, owner, event), []))
    assert sorted(found) == list(range(30))
    for sequence, rows in found.items():
        assert tokens[rows, 0].tolist() == tokens[owner == sequence, 0].tolist()


def test_all_coalitions_take_as_many_tokens_as_there_are_and_few_levels():
    roots = paths(*as_tokens(subsets(8)))
    assert count_tokens(roots) == 2**8  # the empty one is the frame's token
    assert levels(roots) <= 1 + 8


def test_leave_one_out_is_one_long_path_and_a_short_one_an_event():
    size = 9
    sets = np.concatenate([np.ones((1, size), dtype=bool), ~np.eye(size, dtype=bool)])
    roots = paths(*as_tokens(sets))
    assert len(roots) == 1
    assert count_tokens(roots) == 1 + size + size * (size - 1) // 2
    assert levels(roots) == 3  # the long path, those that branch off it, nothing below


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("budget", [None, 40])
def test_shared_beginnings_change_no_value(model, log, removal, budget):
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
    if keeps_beginnings(model):
        assert sharing.tokens < plain.tokens / 1.3
    else:
        assert sharing.tokens == plain.tokens


def test_decoders_and_causal_encoders_share_and_others_are_found_out(model):
    expected = model.backbone.model.config.model_type in ("bert", "gpt2", "llama")
    assert keeps_beginnings(model) == expected
    assert not keeps_beginnings(bag_model())  # keeps nothing, as its states come from elsewhere


def test_bfloat16_is_close_and_not_the_same(bert, log):
    histories = [log.at(3)]
    target, masks = bind("i7", bert, histories), [subsets(len(log.at(3)))]
    exact, rounded = (
        ValueFunction(bert, histories, target, engine=Engine(bert, dtype=dtype))(masks)[0]
        for dtype in ("float32", "bfloat16")
    )
    assert 1e-6 < np.abs(exact - rounded).max() < 0.1


def test_users_who_did_the_same_share_a_pass(bert):
    ours, theirs = typed("i3", "i9"), typed("i3", "i9", "i4")
    histories = [ours, theirs]
    engine = Engine(bert)
    values = ValueFunction(bert, histories, bind("i7", bert, histories), engine=engine)
    masks = [np.ones((1, 2), dtype=bool), np.array([[True, True, False]])]
    found = values(masks)
    assert found[0] == found[1]
    assert engine.tokens == len(bert.encoder.encode([ours]).input_ids)
