"""The order in which windows are read: at random, those of similar length side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthSampler(Sampler[int]):
    """Windows shuffled, then sorted by length within long stretches: batches hold little padding.

    The order depends on the seed and the epoch alone, so all processes and a resumed run agree on
    it; the Trainer's own sampler draws from each process's global generator.

    Args:
        lengths: Size of each window, in whatever costs time alike: tokens, or events.
        batch_size: Windows a step, over all processes.
        seed: Of the shuffle.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = list(lengths), batch_size, seed
        self._epoch = 0

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Every window once, batch after batch in random order; a short batch comes last."""
        draw = torch.Generator().manual_seed(self._seed * 100_003 + self._epoch)
        size = self._batch_size
        places = get_length_grouped_indices(self._lengths, size, generator=draw)
        whole = len(places) // size * size
        # Left in order, every stretch would feed its long windows first and its short ones last.
        batches = torch.tensor(places[:whole], dtype=torch.int64).view(-1, size)
        shuffled = batches[torch.randperm(len(batches), generator=draw)]
        return iter(shuffled.flatten().tolist() + places[whole:])
