"""Vectors of units."""

import torch

from llm_influence.modeling.embeddings import Embeddings


def texts(rows, seed=0):
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed)) + 3


def test_a_fresh_unit_is_its_words_without_the_shared_direction_at_the_given_length():
    given = texts(9)
    units = Embeddings(given, 6, scale=2.5)
    expected = torch.nn.functional.normalize(given - given.mean(0), dim=-1) * 2.5
    torch.testing.assert_close(units(slice(None)), expected)
    torch.testing.assert_close(units(torch.tensor([[1, 4]])), expected[[1, 4]][None])


def test_what_is_added_is_the_sum_of_residuals_and_starts_at_nothing():
    units = Embeddings(texts(9), 6)
    ids = torch.tensor([[[1, 4], [-1, 4], [-1, -1]]])
    assert units.learned(ids).eq(0).all()
    with torch.no_grad():
        units.residual.copy_(texts(9, seed=2))
    one, four = units.residual[1], units.residual[4]
    torch.testing.assert_close(units.learned(ids)[0], torch.stack([one + four, four, 0 * one]))
    assert units.learned(ids[..., :0]).shape == (1, 3, 6)


def test_extending_keeps_old_vectors_and_lends_new_ones_their_neighbours_residuals():
    given = texts(40)
    units = Embeddings(given, 6)
    units.first_item = 10
    with torch.no_grad():
        units.residual.copy_(texts(40, seed=2))
        units.project.weight += 0.1
    before = units(slice(None)).detach()
    new = torch.cat([given[2:3], texts(2, seed=1)])
    units.extend(new)
    after = units(slice(None)).detach()
    assert len(units) == 43
    torch.testing.assert_close(after[:40], before)
    for row in (40, 41, 42):  # item by item, from the formula
        cosines = torch.nn.functional.cosine_similarity(units.words[row], units.words[10:40])
        best = cosines.argsort(descending=True)[:5]
        weights = (cosines[best] / 0.1).exp()
        expected = (weights[:, None] * units.residual[10:40][best]).sum(0) / weights.sum()
        torch.testing.assert_close(units.residual[row], expected)
    assert units.residual.requires_grad
    assert not units.words.requires_grad
    assert units.state_dict().keys() == Embeddings(given, 6).state_dict().keys()


def test_new_items_start_without_residuals_before_training_and_in_an_empty_catalogue():
    for first_item in (0, 9):  # nothing is learned yet; no item is known yet
        units = Embeddings(texts(9), 6)
        units.first_item = first_item
        with torch.no_grad():
            units.residual += float(first_item)
        units.extend(texts(2, seed=1))
        assert units.residual[9:].eq(0).all()


def test_residual_dropout_takes_residuals_of_items_in_training_alone():
    units = Embeddings(texts(400), 6)
    with torch.no_grad():
        units.residual += 1.0
    units.residual_dropout, units.first_item = 0.3, 100
    whole = units.eval()(slice(None)).detach()
    words = units.project(units.words).detach()
    found = units.train()(slice(None)).detach()
    gone = (found == words).all(dim=1)
    assert ((found == whole).all(dim=1) | gone).all()  # nothing between, nothing rescaled
    assert not gone[:100].any()
    assert 60 < gone.sum() < 120
    assert not torch.equal((units(slice(None)) == words).all(dim=1), gone)  # drawn anew
    twice = units(torch.tensor([150, 7, 150]))
    assert torch.equal(twice[0], twice[2])  # an item is one item throughout a call
    units.residual_dropout = 0.0
    assert torch.equal(units(slice(None)), whole)


def test_a_narrow_residual_starts_at_nothing_and_moves_vectors_as_far_as_a_full_one():
    """Far: by the length of one step that changes every learned number by the same amount."""
    torch.manual_seed(0)
    given = torch.randn(9, 64)
    full, narrow = Embeddings(given, 64), Embeddings(given, 64, rank=4)
    assert narrow.residual.shape == (9, 4)
    before = full(slice(None)).detach()
    assert torch.equal(narrow(slice(None)).detach(), before)
    with torch.no_grad():
        for units in (full, narrow):
            signs = torch.tensor([1.0, -1.0]).repeat(units.residual.shape[1] // 2)
            units.residual[3] += 0.01 * signs
    steps = [(units(slice(None)) - before).detach().norm(dim=1) for units in (full, narrow)]
    torch.testing.assert_close(steps[1], steps[0])
    narrow(torch.tensor([3])).sum().backward()
    assert narrow.residual.grad[3].abs().max() > 0
    assert narrow.widen.weight.grad.abs().max() > 0
    narrow.extend(torch.randn(2, 64))
    assert narrow.residual.shape == (11, 4)
    assert narrow.state_dict().keys() - full.state_dict().keys() == {"widen.weight"}


def test_gradients_are_the_same_to_the_last_bit_for_any_number_of_threads():
    units = Embeddings(torch.randn(50, 64), 64)
    ids = torch.randint(50, (64, 40, 2), generator=torch.Generator().manual_seed(0))
    usual, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2, 4, 4):
            torch.set_num_threads(threads)
            units.residual.grad = None
            (units(ids[..., 0]) * units.learned(ids)).sin().sum().backward()
            found.append(units.residual.grad.clone())
    finally:
        torch.set_num_threads(usual)
    assert all(torch.equal(found[0], other) for other in found[1:])
