"""Examples, filter and padding of benchmarks/peers/prefix_peer.py."""

import numpy as np
import pytest
import torch

from benchmarks.peers.prefix_peer import Encoder, Frequency, Prefixes, low_pass

HISTORIES = [np.array(items) for items in ([3, 1, 4, 2], [5], [0, 2, 4])]


def test_every_event_but_the_first_of_a_user_is_a_target():
    examples = Prefixes.of(HISTORIES, longest=2)
    histories, targets = examples.batch(np.arange(len(examples.ends)))
    assert targets.tolist() == [1, 4, 2, 2, 4]
    assert histories.tolist() == [[0, 4], [4, 2], [2, 5], [0, 1], [1, 3]]  # from 1, 0 is padding


def test_an_epoch_has_every_example_once():
    examples = Prefixes.of([np.arange(40), np.arange(7)], longest=50)
    batches = list(examples.batches(4, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(39 + 6))
    assert max(map(len, batches)) == 4


def test_a_filter_that_keeps_all_frequencies_changes_nothing():
    states = torch.randn(2, 10, 4)
    torch.testing.assert_close(Frequency(4, 0.5, low_pass(10, 10)).filtered(states, states), states)


def test_the_lowest_frequency_is_the_mean():
    states = torch.randn(3, 10, 4)
    mean = states.mean(dim=1, keepdim=True).expand_as(states)
    torch.testing.assert_close(low_pass(10, 0) @ states, mean)
    layer = Frequency(4, 0.0, low_pass(10, 0))
    expected = mean + layer.beta**2 * (states - mean)
    torch.testing.assert_close(layer.filtered(states, states), expected)
    torch.testing.assert_close(layer.filtered(states[:, -1:], states), expected[:, -1:])


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_padding_changes_no_score_and_the_order_of_events_does(alpha):
    torch.manual_seed(0)
    sizes = {"width": 8, "layers": 2, "heads": 2, "length": 12, "dropout": 0.5}
    network = Encoder(20, **sizes, alpha=alpha, c=5).eval()
    short = torch.tensor([[3, 7, 11, 2]])
    padded = torch.cat([torch.zeros(1, 8, dtype=torch.long), short], dim=1)
    torch.testing.assert_close(network.scores(short), network.scores(padded))
    assert not torch.allclose(network.scores(short), network.scores(short.flip(1)))
