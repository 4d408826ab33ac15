"""SASRec and BSARec in plain torch, trained with prefix splitting.

Every prefix of a training history is an example of its own, with one target, the event after it:
cross-entropy over all items at the last position (arXiv 2604.05309). Positions are counted from
the end of the history. BSARec (AAAI 2024, arXiv 2312.10325) mixes attention with a filter over
positions, ``alpha filter + (1 - alpha) attention``; SASRec is the same with ``alpha`` 0.

Two things make it fast and change no score. A batch is only as long as its longest history, since
padding is zero after every layer. And the last layer computes the last position alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from benchmarks.peers.ranking_task import Items, Scorer
from benchmarks.peers.trial import RankingTrial

POOL = 20
"""Batches that are sorted by length together, so that a batch has little padding."""


def main() -> None:
    """Run one trial."""
    trial = RankingTrial()
    torch.manual_seed(trial.seed)
    random = np.random.default_rng(trial.seed)
    settings = dict(trial.settings)
    rate, batch_size = float(str(settings.pop("lr"))), int(str(settings.pop("batch_size")))
    network = Encoder(trial.task.num_items, **settings)
    examples = Prefixes.of(trial.task.train, network.length)
    scorer = make_scorer(network, trained_items(trial.task.train, trial.task.num_items))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    over = False
    while not over:
        network.train()
        trial.start_clock()
        for rows in examples.batches(batch_size, random):
            histories, targets = examples.batch(rows)
            optimizer.zero_grad()
            cross_entropy(network.scores(histories), targets).backward()
            optimizer.step()
        over = trial.end_epoch(network, scorer)
    trial.finish(network, scorer)


# --- examples ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefixes:
    """N examples: every event but a user's first is the target of the events before it.

    Attributes:
        events: All training events, user by user, as rows of the catalogue.
        ends: (N,) places of the targets in ``events``; a history ends before it.
        lengths: (N,) events of each history, at most the longest that the network reads.
    """

    events: Items
    ends: Items
    lengths: Items

    @classmethod
    def of(cls, histories: list[Items], longest: int) -> Prefixes:
        """The prefixes of these histories, each cut to its last ``longest`` events."""
        places = np.concatenate([np.arange(len(history)) for history in histories])
        ends = np.flatnonzero(places > 0)
        return cls(np.concatenate(histories), ends, np.minimum(places[ends], longest))

    def batches(self, size: int, random: np.random.Generator) -> Iterator[Items]:
        """Rows of all examples in random order, those of like length together."""
        order = random.permutation(len(self.ends))
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches = [pool[first : first + size] for first in range(0, len(pool), size)]
            yield from (batches[place] for place in random.permutation(len(batches)))

    def batch(self, rows: Items) -> tuple[Tensor, Tensor]:
        """(B, L) items counted from 1, 0 on the left is padding; (B,) targets counted from 0."""
        ends, lengths = self.ends[rows, None], self.lengths[rows, None]
        back = np.arange(lengths.max(), 0, -1)
        items = np.where(back <= lengths, self.events[ends - np.minimum(back, lengths)] + 1, 0)
        return torch.from_numpy(items), torch.from_numpy(self.events[self.ends[rows]])


def trained_items(histories: list[Items], num_items: int) -> npt.NDArray[np.bool_]:
    """(I,) whether an item has a training event."""
    return np.bincount(np.concatenate(histories), minlength=num_items) > 0


# --- network -------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Item and position vectors, blocks, and the scores of all items after the last event.

    Args:
        num_items: Size I of the catalogue.
        width: Of all vectors.
        layers: Blocks.
        heads: Attention heads.
        length: A history's last events that are read.
        dropout: Of vectors, attention and outputs.
        alpha: Share of the filter in each block; 0: attention alone, as in SASRec.
        c: Cut of the filter, see `low_pass`.
    """

    def __init__(
        self,
        num_items: int,
        *,
        width: int,
        layers: int,
        heads: int,
        length: int,
        dropout: float,
        alpha: float = 0.0,
        c: int = 0,
    ) -> None:
        super().__init__()
        self.length = length
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, alpha, low_pass(length, c)) for _ in range(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0

    def forward(self, items: Tensor) -> Tensor:
        """(B, W) states after (B, L) items counted from 1, with 0 on the left as padding."""
        real = (items > 0)[..., None]
        states = self.items(items) + self.positions.weight[-items.shape[1] :]
        states = self.dropout(self.norm(states)) * real
        for block in self.blocks[:-1]:
            states = block(states, real) * real
        return self.blocks[-1](states, real, last=True)[:, -1]

    def scores(self, items: Tensor) -> Tensor:
        """(B, I) scores of all items."""
        return self(items) @ self.items.weight[1:].T


class Block(nn.Module):
    """Attention beside the filter, then two dense layers; a norm after every sum."""

    def __init__(self, width: int, heads: int, dropout: float, alpha: float, low: Tensor) -> None:
        super().__init__()
        self.heads, self.alpha = heads, alpha
        self.query, self.keys = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.dense, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.filter = Frequency(width, dropout, low) if alpha else None
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def forward(self, states: Tensor, real: Tensor, *, last: bool = False) -> Tensor:
        """(B, L, W), or (B, 1, W) of the last position, from (B, L, W); ``real``: no padding."""
        inputs = states[:, -1:] if last else states
        mixed = self._attention(inputs, states, real)
        if self.filter is not None:
            mixed = self.alpha * self.filter(inputs, states) + (1 - self.alpha) * mixed
        outputs = self.dropout(self.narrow(gelu(self.wide(mixed))))
        return self.norm(outputs + mixed)

    def _attention(self, inputs: Tensor, states: Tensor, real: Tensor) -> Tensor:
        """Each input's attention to the states up to its own position; padding sees itself."""
        count, length = inputs.shape[1], states.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool).tril()[-count:]
        itself = torch.eye(length, dtype=torch.bool)[-count:]
        allowed = (earlier & real.mT | itself)[:, None]
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(inputs), *self.keys(states).chunk(2, dim=-1))
        )
        dropped = self.dropout.p if self.training else 0.0
        found = scaled_dot_product_attention(query, key, value, allowed, dropped)
        outputs = self.dropout(self.dense(found.transpose(1, 2).flatten(2)))
        return self.attention_norm(outputs + inputs)


class Frequency(nn.Module):
    """BSARec's filter: low frequencies over positions, the others times a learned ``beta**2``."""

    def __init__(self, width: int, dropout: float, low: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low, persistent=False)
        self.beta = nn.Parameter(torch.randn(width))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def filtered(self, inputs: Tensor, states: Tensor) -> Tensor:
        """(B, Q, W) the inputs, which are the last Q of the (B, L, W) states, filtered."""
        low = self.low[-inputs.shape[1] :, -states.shape[1] :] @ states
        return low + self.beta**2 * (inputs - low)

    def forward(self, inputs: Tensor, states: Tensor) -> Tensor:
        """(B, Q, W) the filtered inputs, added to them."""
        return self.norm(self.dropout(self.filtered(inputs, states)) + inputs)


def low_pass(length: int, c: int) -> Tensor:
    """(L, L) matrix that keeps the ``c // 2 + 1`` lowest frequencies of L positions."""
    spectrum = torch.fft.rfft(torch.eye(length), dim=0, norm="ortho")
    spectrum[c // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, n=length, dim=0, norm="ortho")


def make_scorer(network: Encoder, known: npt.NDArray[np.bool_]) -> Scorer:
    """The network's scores of all items of the catalogue; items it never saw get -inf."""

    def scorer(histories: list[Items]) -> npt.NDArray[np.float32]:
        cut = [history[-network.length :] + 1 for history in histories]
        items = np.zeros((len(cut), max(map(len, cut))), dtype=np.int64)
        for row, history in enumerate(cut):
            items[row, items.shape[1] - len(history) :] = history
        with torch.inference_mode():
            scores = network.eval().scores(torch.from_numpy(items)).numpy()
        scores[:, ~known] = -np.inf
        return scores

    return scorer


if __name__ == "__main__":
    main()
