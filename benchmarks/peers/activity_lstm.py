"""An LSTM that predicts a ticket's next activity: the peer of docs/tutorials/customer_service.md.

As Tax et al. (2017, "Predictive business process monitoring with LSTM neural networks") feed
theirs: the activity, the time since the activity before and since the case began, the hour and the
weekday of every event so far. Every prefix of the training cases is a question.
"""

from __future__ import annotations

import copy
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DAY = 86_400
IGNORE = -100
Settings = dict[str, float]

GRID: dict[str, tuple[float, ...]] = {
    "width": (32, 64, 128),
    "layers": (1, 2),
    "dropout": (0.0, 0.2, 0.4),
    "learning_rate": (3e-3, 1e-3),
    "batch_size": (32, 128),
    "weight_decay": (0.0, 1e-4),
}
FIRST: Settings = dict(zip(GRID, (64, 1, 0.2, 3e-3, 32, 0.0), strict=True))


def settings() -> Iterator[Settings]:
    """A point known to work first, then the others of the grid in an order drawn from seed 0."""
    yield FIRST
    drawn = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    random.Random(0).shuffle(drawn)  # noqa: S311
    yield from (point for point in drawn if point != FIRST)


@dataclass(frozen=True)
class Cases:
    """All C cases of the split, made equally long (E events).

    Attributes:
        activities: (C, E) codes from 0, -1 where a case has no further event.
        times: (C, E, 4) the numbers beside the activity.
        parts: part -> (C, E) which events are asked for.
        activities_known: How many activities there are.
    """

    activities: Tensor
    times: Tensor
    parts: dict[str, Tensor]
    activities_known: int

    @classmethod
    def load(cls, folder: Path) -> Cases:
        """Read ``split.parquet``."""
        table = pq.read_table(folder / "split.parquet")
        names = sorted(set(table["item_id"].to_pylist()))
        codes = np.searchsorted(names, table["item_id"].to_pylist())
        place = table["position"].to_numpy()
        case = np.cumsum(place == 0) - 1
        moments = table["timestamp"].to_numpy().astype(np.float64)
        part = table["part"].to_numpy().astype(str)
        shape = (int(case[-1]) + 1, int(place.max()) + 1)
        activities, asked = np.full(shape, -1), np.full(shape, "", dtype=part.dtype)
        activities[case, place], asked[case, place] = codes, part
        numbers = np.zeros((*shape, 4), np.float32)
        numbers[case, place] = _numbers(moments, place)
        behind = np.arange(shape[1]) > 0  # a first event has no history to be predicted from
        return cls(
            torch.from_numpy(activities.astype(np.int64)),
            torch.from_numpy(numbers),
            {
                name: torch.from_numpy((asked == name) & behind)
                for name in ("train", "validation", "test")
            },
            len(names),
        )

    def labels(self, part: str) -> Tensor:
        """(C, E) the activity of every event of a part, `IGNORE` elsewhere."""
        return self.activities.masked_fill(~self.parts[part], IGNORE)


def _numbers(moments: npt.NDArray[np.float64], place: npt.NDArray[np.int64]) -> np.ndarray:
    """(N, 4) of events sorted by case: gap, age of the case, hour, weekday; about 0 to 1."""
    starts = np.maximum.accumulate(np.where(place == 0, np.arange(len(place)), 0))
    gaps = np.where(place == 0, 0, np.diff(moments, prepend=0))
    age = moments - moments[starts]
    return np.stack(
        [
            np.log1p(gaps) / 15,
            np.log1p(age) / 15,
            moments % DAY / DAY,
            (moments // DAY + 4) % 7 / 7,  # 1970 began on a Thursday
        ],
        axis=1,
    )


class ActivityLSTM(nn.Module):
    """Activities and numbers to (C, E, A) logits of what follows each event."""

    def __init__(self, known: int, setting: Settings) -> None:
        super().__init__()
        width, layers = int(setting["width"]), int(setting["layers"])
        self.embedding = nn.Embedding(known, width)
        self.lstm = nn.LSTM(
            width + 4, width, layers, batch_first=True, dropout=setting["dropout"] * (layers > 1)
        )
        self.dropout = nn.Dropout(setting["dropout"])
        self.head = nn.Linear(width, known)

    def forward(self, activities: Tensor, times: Tensor) -> Tensor:
        """See the class; padding is read as activity 0, behind everything that is asked."""
        inputs = torch.cat([self.embedding(activities.clamp(min=0)), times], dim=2)
        return self.head(self.dropout(self.lstm(self.dropout(inputs))[0]))


@dataclass(frozen=True)
class Trained:
    """A trained LSTM at its best epoch.

    Attributes:
        validation: Its accuracy on validation.
        seconds: Processor seconds of training.
        epochs: Epochs trained.
        correct: (N,) whether each test question was answered right, in the order of the split.
    """

    validation: float
    seconds: float
    epochs: int
    correct: npt.NDArray[np.float64]


def train(
    cases: Cases,
    setting: Settings,
    seed: int,
    *,
    max_seconds: float,
    patience: int = 10,
    max_epochs: int = 100,
) -> Trained:
    """Train with Adam; the epoch is chosen by validation accuracy."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model = ActivityLSTM(cases.activities_known, setting)
    decay = setting["weight_decay"]
    adam = torch.optim.Adam(model.parameters(), setting["learning_rate"], weight_decay=decay)
    labels = cases.labels("train")
    chosen = torch.flatten((labels != IGNORE).any(dim=1).nonzero())
    best, best_epoch, weights, begun, epoch = -1.0, 0, model.state_dict(), time.process_time(), 0
    for epoch in range(1, max_epochs + 1):
        model.train()
        for rows in chosen[torch.randperm(len(chosen))].split(int(setting["batch_size"])):
            logits = model(cases.activities[rows, :-1], cases.times[rows, :-1])
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels[rows, 1:].flatten(), ignore_index=IGNORE
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
        accuracy = float(_correct(model, cases, "validation").mean())
        if accuracy > best:
            best, best_epoch, weights = accuracy, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch >= patience or time.process_time() - begun > max_seconds:
            break
    seconds = time.process_time() - begun
    model.load_state_dict(weights)
    return Trained(best, seconds, epoch, _correct(model, cases, "test"))


@torch.inference_mode()
def _correct(model: ActivityLSTM, cases: Cases, part: str) -> npt.NDArray[np.float64]:
    labels = cases.labels(part)[:, 1:]
    predicted = model.eval()(cases.activities[:, :-1], cases.times[:, :-1]).argmax(dim=2)
    return (predicted == labels)[labels != IGNORE].double().numpy()
