"""Windows of similar length share a batch, in an order that the seed and the epoch fix."""

import numpy as np
import pytest

from llm_influence.training.base_trainer import LengthSampler
from llm_influence.training.finetune import finetune
from tests.training.runs import config_in


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(1, 50, size=203).tolist()


def test_every_window_is_read_once_an_epoch(lengths):
    sampler = LengthSampler(lengths, 8, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(203))


def test_batches_hold_less_padding_than_at_random(lengths):
    order = list(LengthSampler(lengths, 8, seed=0))
    drawn = np.random.default_rng(1).permutation(203)
    assert _padded(order, lengths) < 0.75 * _padded(drawn, lengths)


def test_the_order_follows_from_seed_and_epoch(lengths):
    first, again, other = (LengthSampler(lengths, 8, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(again) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)


def test_long_windows_do_not_come_first(lengths):
    order = list(LengthSampler(lengths, 8, seed=0))
    halves = [np.mean([lengths[i] for i in half]) for half in (order[:100], order[100:200])]
    assert abs(halves[0] - halves[1]) < 8


def _padded(order, lengths):
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 203, 8)]
    return sum(max(batch) * len(batch) for batch in batches)


def test_a_run_reads_its_windows_in_a_new_order_every_epoch(tmp_path, monkeypatch):
    orders, read = [], LengthSampler.__iter__

    def noted(self):
        orders.append(list(read(self)))
        return iter(orders[-1])

    monkeypatch.setattr(LengthSampler, "__iter__", noted)
    finetune(config_in(tmp_path, train={"epochs": 2, "batch_size": 4}))
    assert len(orders) == 2
    assert orders[0] != orders[1]
