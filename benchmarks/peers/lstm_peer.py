"""A click model with an LSTM (or GRU): one pass over a user's events, a candidate at every step.

A step reads the vectors of a film and of its rating, and of the gap before it if asked to. The
state before a candidate, the candidate's vector, their product and the gap to the question go
through a small network; each film has a bias of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.peers.feedback_task import Examples, Floats, Ints, Task
from benchmarks.peers.trial import FeedbackTrial, fit

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}
LEVELS = 6
"""Ratings 1 to 5, and 0."""
GAPS = 32
"""Buckets of a gap: powers of two of its seconds."""


def main() -> None:
    """Run one trial."""
    trial = FeedbackTrial()
    torch.manual_seed(trial.seed)
    torch.set_num_threads(1)
    network = ClickNetwork(trial.task, trial.settings)
    events = Events(trial.task)
    users = np.unique(trial.task.parts["train"].users)
    batch = int(str(trial.settings["batch_users"]))

    def losses() -> Iterator[Tensor]:
        order = torch.randperm(len(users)).numpy()
        for chosen in np.array_split(users[order], len(users) // batch):
            logits, labels, asked = events.ask(network, chosen, "train")
            yield F.binary_cross_entropy_with_logits(logits[asked], labels[asked])

    fit(trial, network, losses, lambda examples: events.scores(network, examples, batch))


class ClickNetwork(nn.Module):
    """The log-odds of a like before every event of some histories.

    Args:
        task: Sizes and genres.
        settings: ``width``, ``cell``, ``dropout``; ``genres`` and ``gaps``: whether they are read.
    """

    genre_of: Tensor

    def __init__(self, task: Task, settings: dict[str, object]) -> None:
        super().__init__()
        width = int(str(settings["width"]))
        self.item = nn.Embedding(task.num_items, width)
        self.rating, self.gap = nn.Embedding(LEVELS, width), nn.Embedding(GAPS, width)
        self.genre = nn.Linear(task.genres.shape[1], width, bias=False)
        self.bias = nn.Embedding(task.num_items, 1)
        self.cell = CELLS[str(settings["cell"])](width, width, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU())
        self.score = nn.Linear(width, 1)
        self.dropout = nn.Dropout(float(str(settings["dropout"])))
        self.register_buffer("genre_of", torch.tensor(task.genres, dtype=torch.float32))
        self._genres, self._gaps = bool(settings["genres"]), bool(settings["gaps"])
        for table in (self.item, self.rating, self.gap):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.zeros_(self.bias.weight)

    def forward(self, items: Tensor, ratings: Tensor, gaps: Tensor) -> Tensor:
        """(B, L) log-odds that each event's item is liked, given the events before it."""
        films = self.item(items)
        if self._genres:
            films = films + self.genre(self.genre_of[items])
        waits = self.gap(gaps) if self._gaps else 0.0
        states, _ = self.cell(self.dropout(films + self.rating(ratings) + waits))
        before = self.dropout(F.pad(states, (0, 0, 1, 0))[:, :-1] + waits)
        films = self.dropout(films)
        mixed = self.mix(torch.cat([before, films, before * films], dim=-1))
        return (self.score(self.dropout(mixed)) + self.bias(items))[..., 0]


class Events:
    """The events of a task as tensors, cut out and padded user by user."""

    def __init__(self, task: Task) -> None:
        self._offsets = task.offsets
        self._last = {
            part: np.maximum.reduceat(
                np.where(kept, np.arange(len(kept)) + 1, 0), task.offsets[:-1]
            )
            for part, kept in _kept(task).items()
        }
        seconds = np.diff(task.times, prepend=task.times[:1]).clip(0)
        seconds[task.offsets[:-1]] = 0
        gaps = np.log2(1 + seconds).astype(np.int64)
        self._columns = [
            torch.from_numpy(c) for c in (task.items, task.ratings.astype(np.int64), gaps)
        ]
        self._likes = torch.from_numpy(task.likes.astype(np.float32))

    def ask(self, network: nn.Module, users: Ints, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) log-odds, likes, and which of them are asked, up to a part's last event."""
        spans = [slice(self._offsets[user], self._last[part][user]) for user in users]
        columns = [
            pad_sequence([column[span] for span in spans], batch_first=True)
            for column in (*self._columns, self._likes)
        ]
        lengths = torch.tensor([span.stop - span.start for span in spans])
        places = torch.arange(columns[0].shape[1])
        asked = (places < lengths[:, None]) & (places > 0)
        return network(*columns[:3]), columns[3], asked

    def scores(self, network: nn.Module, examples: Examples, batch: int) -> Floats:
        """(N,) log-odds of examples of one part."""
        found = np.empty(len(examples.labels))
        with torch.inference_mode():
            every = np.unique(examples.users)
            for users in np.array_split(every, len(every) // batch):
                logits, _, _ = self.ask(network, users, "test")
                rows = np.flatnonzero(np.isin(examples.users, users))
                place = np.searchsorted(users, examples.users[rows])
                found[rows] = logits[place, examples.positions[rows]].numpy()
        return found


def _kept(task: Task) -> dict[str, np.ndarray]:
    """Which events a part may read: those that train, or all of them."""
    return {"train": task.trained, "test": np.ones(len(task.items), dtype=bool)}


if __name__ == "__main__":
    main()
