"""Training histories cut into windows that fit the context, every event a label at least once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.evaluation.ranking import seen_items
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.rendering.encoder import Encoder
from llm_influence.types import History

IGNORE = -100
"""Label of a position that predicts nothing; the convention of torch and transformers."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Events ``start`` to ``stop`` of one user; the event at ``stop``, if any, is a label too."""

    user: int
    start: int
    stop: int


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
        """One window; the collator renders it."""
        return self.windows[index]


class WindowCollator:
    """Windows to one batch: encoded tensors, item labels and behaviour labels.

    Labels are (B, E + 1): column 0 is what the frame alone predicts (the first event), column
    e + 1 what the state after event e predicts.
    """

    def __init__(self, log: BehaviorLog, encoder: Encoder) -> None:
        self._log, self._encoder = log, encoder

    def __call__(self, windows: Sequence[Window]) -> Inputs:
        """See the class."""
        whole = [self._log.at(w.user, w.stop + 1).keep(slice(w.start, None)) for w in windows]
        seen = [history.keep(slice(None, -1)) for history in whole]
        batch = collate(self._encoder.encode(seen))
        labels = self._encoder.lexicon.columns(whole)
        return {
            **batch_inputs(batch),
            "labels": _pad(labels.codes["item"], labels.lengths),
            "behavior_labels": _pad(labels.codes["behavior"], labels.lengths),
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
            items = len(self._rows.log.catalogue)
            inputs["seen"] = seen_items([history.items for history in histories], items)
        return inputs


def batch_inputs(batch: EncodedBatch) -> Inputs:
    """The tensors of an `EncodedBatch` by name, as the Trainer moves them about."""
    return {name: getattr(batch, name) for name in batch.__slots__}


def _pad(codes: np.ndarray, lengths: np.ndarray) -> Tensor:
    places = np.arange(int(lengths.max()))
    padded = np.full((len(lengths), len(places)), IGNORE, dtype=np.int64)
    padded[places < lengths[:, None]] = codes
    return torch.from_numpy(padded)
