"""Training histories cut into windows that fit the context, every event a label at least once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.ranking import seen_items
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.rendering.encoder import Encoder
from llm_influence.training.augmentation import EventDropout, events_before
from llm_influence.types import History

IGNORE = -100
"""Label of a position that predicts nothing; the convention of torch and transformers."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Events ``start`` to ``stop`` of one user; the event at ``stop``, if any, is a label too.

    ``epoch`` is the pass over the data that the window is read in; augmentation draws by it. Events
    before place ``taught`` of the user's history are read but are no labels.
    """

    user: int
    start: int
    stop: int
    epoch: int = 0
    taught: int = 0


class WindowDataset(Dataset[Window]):
    """Windows of all users, cut backwards from each user's last event, so the newest is full.

    The last training event of a user is a label alone: nothing follows it to be predicted. A
    user's only event is predicted from the frame.

    Args:
        log: Events of training.
        encoder: Says how many events fit.
    """

    def __init__(self, log: BehaviorLog, encoder: Encoder) -> None:
        self.log = log
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader workers see it
        stops = np.diff(log.offsets) - 1
        users = np.arange(len(log))
        self.windows: list[Window] = []
        while len(users):
            encoded = encoder.encode([log.at(int(user), int(stops[user])) for user in users])
            for user, start in zip(users, encoded.left_out, strict=True):
                self.windows.append(Window(int(user), int(start), int(stops[user])))
            stops[users] = encoded.left_out
            users = users[encoded.left_out > 0]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        """One window of the present epoch; the collator renders it."""
        return replace(self.windows[index], epoch=int(self._epoch))

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins, counted from 0."""
        self._epoch.fill_(epoch)


class WindowCollator:
    """Windows to one batch: encoded tensors, item labels and behaviour labels.

    Labels are (B, L), one for each of a window's events and for the one after it. ``asked_at``
    (B, L) is the token from whose state each is predicted: the last one of the last event before
    it, or of the frame for the first. Events that ``dropout`` leaves out are not rendered, the gap
    behind them is measured from the last event that is there, and every event remains a label
    (docs/decisions/0006-event-dropout.md).

    Args:
        log: Events of training.
        encoder: Renders the windows.
        dropout: Which events are left out; default: none.
    """

    def __init__(
        self, log: BehaviorLog, encoder: Encoder, dropout: EventDropout | None = None
    ) -> None:
        self._log, self._encoder = log, encoder
        self._dropout = dropout or EventDropout()

    def __call__(self, windows: Sequence[Window]) -> Inputs:
        """See the class."""
        whole = [self._log.at(w.user, w.stop + 1).keep(slice(w.start, None)) for w in windows]
        kept = [
            self._dropout.kept(len(history) - 1, epoch=w.epoch, user=w.user, start=w.start)
            for history, w in zip(whole, windows, strict=True)
        ]
        encoded = self._encoder.encode(
            [h.keep(slice(None, -1)).keep(k) for h, k in zip(whole, kept, strict=True)]
        )
        batch = collate(encoded)
        # A removal makes gaps longer, and so may their words: what no longer fits is left out.
        before = [
            (events_before(k) - left_out).clip(0)
            for k, left_out in zip(kept, encoded.left_out, strict=True)
        ]
        labels = self._encoder.lexicon.columns(whole)
        places = _pad(np.concatenate(before), labels.lengths, 0)
        items = _pad(labels.codes["item"], labels.lengths, IGNORE)
        untaught = torch.arange(items.shape[1]) < _untaught(windows)[:, None]
        behaviors = _pad(labels.codes["behavior"], labels.lengths, IGNORE)
        return {
            **batch_inputs(batch),
            "labels": items.masked_fill(untaught, IGNORE),
            "behavior_labels": behaviors.masked_fill(untaught, IGNORE),
            "asked_at": batch.ends.gather(1, places),
        }


class RowDataset(Dataset[int]):
    """The rows of an evaluation set, by number."""

    def __init__(self, rows: EvaluationSet) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """The row's number; the collator renders it."""
        return index


class RowCollator:
    """Rows of an evaluation set to one batch with their targets and seen items."""

    def __init__(self, rows: EvaluationSet, encoder: Encoder, *, exclude_seen: bool) -> None:
        self._rows, self._encoder, self._exclude_seen = rows, encoder, exclude_seen

    def __call__(self, numbers: Sequence[int]) -> Inputs:
        """See the class."""
        histories: list[History] = [self._rows.history(number) for number in numbers]
        inputs = batch_inputs(collate(self._encoder.encode(histories)))
        inputs["labels"] = torch.from_numpy(self._rows.target_items[numbers].astype(np.int64))
        if self._exclude_seen:
            inputs["seen"] = seen_items([history.items for history in histories])
        return inputs


def batch_inputs(batch: EncodedBatch) -> Inputs:
    """The tensors of an `EncodedBatch` by name, as the Trainer moves them about."""
    return {name: getattr(batch, name) for name in batch.__slots__}


def _untaught(windows: Sequence[Window]) -> Tensor:
    """(B,) how many of each window's events are no labels; not above 0 where all are."""
    return torch.tensor([window.taught - window.start for window in windows])


def _pad(codes: np.ndarray, lengths: np.ndarray, filler: int) -> Tensor:
    places = np.arange(int(lengths.max()))
    padded = np.full((len(lengths), len(places)), filler, dtype=np.int64)
    padded[places < lengths[:, None]] = codes
    return torch.from_numpy(padded)
