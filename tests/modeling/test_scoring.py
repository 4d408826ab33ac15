"""A catalogue scored in chunks gives what it gives whole."""

import pytest
import torch

from llm_influence.modeling.scoring import ItemScores

ROWS, ITEMS = 5, 23


def drawn(seed: int = 0) -> torch.Tensor:
    """Few distinct scores, so that most are tied, within chunks and across them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (ROWS, ITEMS), generator=generator).float()


@pytest.fixture
def seen():
    return torch.tensor([[0, 22, 22], [7, 6, -1], [-1, -1, -1], [3, 4, 5], [21, 0, -1]])


@pytest.mark.parametrize("chunk", [1, 7, ITEMS])
def test_ranks_are_places_in_the_sorted_list_of_candidates(chunk, seen):
    scores = drawn()
    scored = ItemScores.of(scores, chunk)
    for target in range(ITEMS):
        ranks = scored.ranks(torch.full((ROWS,), target), seen)
        for row in range(ROWS):
            left_out = set(seen[row].tolist()) - {target}
            order = sorted(
                set(range(ITEMS)) - left_out, key=lambda item: (-float(scores[row, item]), item)
            )
            if target not in seen[row]:
                assert ranks[row] == order.index(target) + 1
    targets = torch.tensor([22, 0, 7, 13, 6])
    assert scored.at(targets).tolist() == scores[torch.arange(ROWS), targets].tolist()


@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("chunk", [1, 7, ITEMS])
def test_the_best_are_the_first_of_the_sorted_list_with_their_log_odds(chunk, k, seen):
    scores = drawn(1)
    allowed = torch.arange(ITEMS) != 2
    best = ItemScores.of(scores, chunk).best(k, seen=seen, allowed=allowed)
    assert best.codes.shape == (ROWS, min(k, ITEMS))
    p = scores.double().softmax(dim=1)
    for row in range(ROWS):
        candidates = set(range(ITEMS)) - {2} - set(seen[row].tolist())
        order = sorted(candidates, key=lambda item: (-float(scores[row, item]), item))[:k]
        found = best.codes[row][best.candidate[row]].tolist()
        assert found == order
        chosen = p[row, order]
        torch.testing.assert_close(
            best.log_odds[row][best.candidate[row]], torch.log(chosen / (1 - chosen))
        )


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_log_odds_stay_exact_where_one_item_has_all_of_the_probability(chunk):
    best = ItemScores.of(torch.tensor([[200.0, 0.0, 1.0]]), chunk).best(3)
    assert best.codes.tolist() == [[0, 2, 1]]
    others = torch.tensor([0.0, 1.0], dtype=torch.float64).logsumexp(0)
    assert best.log_odds[0, 0] == pytest.approx(200 - float(others), rel=1e-12)
    assert best.log_odds[0, 1:].tolist() == pytest.approx([-199, -200])
    alone = ItemScores.of(torch.tensor([[1.0]])).best(1)
    assert alone.log_odds.isfinite().all()


def test_a_chunk_is_scored_once_where_it_is_the_only_one():
    asked = []

    def score(start, stop):
        asked.append((start, stop))
        return drawn()[:, start:stop]

    scored = ItemScores(ITEMS, score)
    scored.ranks(torch.zeros(ROWS, dtype=torch.int64))
    scored.best(3)
    assert asked == [(0, ITEMS)]
    asked.clear()
    ItemScores(ITEMS, score, chunk=10).best(3)
    assert asked == [(0, 10), (10, 20), (20, 23)]  # never more than a chunk at a time
