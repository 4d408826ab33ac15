"""The peers rank by our rule; they cannot import it, so this holds the two together."""

import numpy as np
import pytest
import torch

from benchmarks.peers import metrics as peer
from llm_influence.evaluation.metrics import MISSED, ranking_metrics, seen_items, target_ranks


@pytest.mark.parametrize("seed", range(5))
def test_the_two_ranking_rules_agree_where_scores_are_equal(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (40, 12)).astype(np.float32)
    scores[random.random(scores.shape) < 0.3] = -np.inf  # items that a peer never trained
    targets = random.integers(0, 12, 40)
    histories = [random.integers(0, 12, random.integers(1, 6)) for _ in targets]

    found = peer.target_ranks(scores, targets, histories)
    expected = target_ranks(
        torch.from_numpy(scores), torch.from_numpy(targets), seen_items(histories)
    ).numpy()

    assert (found == expected).all()
    assert (expected == MISSED).any()
    assert peer.ndcg(found) == pytest.approx(ranking_metrics(expected)["ndcg@10"])
