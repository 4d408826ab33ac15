"""Losses of a few items: their formulas, and the truth as what they are lowest at."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from llm_influence.training.objective import gbce, sampled_softmax

ITEMS = 5
TRUTH = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
CHANCES = torch.tensor([0.9, 0.2, 0.5, 0.35, 0.6], dtype=torch.float64)


def expected_gradient(logits, chances, loss):
    """Of ``loss(own, others, hits, drawn)`` over labels from `TRUTH` and over all draws."""
    logits = logits.clone().requires_grad_()
    labels, total = torch.arange(ITEMS), torch.zeros((), dtype=torch.float64)
    for coins in itertools.product([False, True], repeat=ITEMS):
        inside = torch.tensor(coins)
        drawn = inside.nonzero()[:, 0]
        chance = torch.where(inside, chances, 1 - chances).prod()
        others, hits = logits[drawn].expand(ITEMS, -1), labels[:, None] == drawn
        total = total + chance * (TRUTH * loss(logits, others, hits, drawn)).sum()
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


def test_the_sampled_softmax_is_lowest_at_the_true_distribution_however_items_are_drawn():
    def corrected(own, others, hits, drawn):
        return sampled_softmax(own, others, hits, CHANCES.log(), CHANCES[drawn].log())

    def uncorrected(own, others, hits, drawn):
        return sampled_softmax(own, others, hits, torch.zeros(ITEMS), torch.zeros(len(drawn)))

    at_truth = expected_gradient(TRUTH.log() + 3, CHANCES, corrected)
    torch.testing.assert_close(at_truth, torch.zeros(ITEMS, dtype=torch.float64))
    assert expected_gradient(TRUTH.log(), CHANCES, uncorrected).abs().max() > 0.02
    assert expected_gradient(torch.zeros(ITEMS).double(), CHANCES, corrected).abs().max() > 0.02


def test_with_all_items_drawn_evenly_the_sampled_softmax_is_the_full_one():
    logits = torch.randn(4, ITEMS, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 0, 4, 3])
    rows, hits = torch.arange(4), labels[:, None] == torch.arange(ITEMS)
    log_q = torch.full((ITEMS,), math.log(0.3))
    found = sampled_softmax(logits[rows, labels], logits, hits, log_q[labels], log_q)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"))


def test_gbce_is_its_formula():
    """Two negatives of 9 items at rate 2 / 8, and the label drawn once by accident."""
    own, others = torch.tensor([0.7]), torch.tensor([[-0.2, 0.7, 1.1]])
    hits = torch.tensor([[False, True, False]])
    found = gbce(own, others, hits, rate=0.25, items=9, calibration=0.75)
    beta = 0.25 * (0.75 * (1 - 1 / 0.25) + 1 / 0.25)

    def sigma(x):
        return 1 / (1 + math.exp(-x))

    terms = math.log(sigma(0.7) ** beta) + math.log(1 - sigma(-0.2)) + math.log(1 - sigma(1.1))
    assert found.tolist() == pytest.approx([-terms / 3])
    plain = gbce(own, others, hits, rate=0.25, items=9, calibration=0)
    logits, truth = torch.tensor([0.7, -0.2, 1.1]), torch.tensor([1.0, 0, 0])
    assert float(plain) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, truth)))


def test_fully_calibrated_gbce_is_lowest_at_the_true_probabilities():
    chances = torch.full((ITEMS,), 0.3, dtype=torch.float64)

    def at(calibration):
        def loss(own, others, hits, drawn):
            return gbce(own, others, hits, rate=0.3, items=ITEMS, calibration=calibration)

        return expected_gradient(torch.logit(TRUTH), chances, loss)

    torch.testing.assert_close(at(1.0), torch.zeros(ITEMS, dtype=torch.float64))
    assert (at(0.0) < 0).all()  # plain BCE wants more than the truth
