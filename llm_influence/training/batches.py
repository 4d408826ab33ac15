"""Training histories cut into windows that fit the context, every event a label at least once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet, feedback_labels
from llm_influence.evaluation.evaluate import Examples
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.rendering.encoder import Encoder, join
from llm_influence.rendering.time_words import query_codes
from llm_influence.training.augmentation import (
    EventDropout,
    View,
    Views,
    events_before,
    paraphrases,
)
from llm_influence.training.regularizers import NOBODY, Swaps
from llm_influence.types import BoolArray, FloatArray, History, IntArray

IGNORE = -100
"""Label of a position that predicts nothing; the convention of torch and transformers."""

Inputs = dict[str, Any]
"""Tensors by name; those of a second batch may stand in a dict of their own."""


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

    def draws_by(self) -> dict[str, int]:
        """What random draws about the window depend on, beside the seed."""
        return {"epoch": self.epoch, "user": self.user, "start": self.start}


@dataclass(frozen=True, slots=True, eq=False)
class WeightedLabels:
    """Feedback of the N events of a log, as it is learned from.

    Attributes:
        labels: (N,) float32, NaN where none is asked.
        weights: (N,) float32, how much each counts; their mean is the share of events that have a
            label of their own, whatever has been added.
    """

    labels: FloatArray
    weights: FloatArray


class WindowDataset(Dataset[Window]):
    """Windows of all users, cut backwards from each user's last event, so the newest is full.

    The last training event of a user is a label alone: nothing follows it to be predicted. A
    user's only event is predicted from the prompt.

    Args:
        log: Events of training.
        encoder: Says how many events fit.
    """

    def __init__(self, log: BehaviorLog, encoder: Encoder) -> None:
        self.log = log
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader workers see it
        self.read = 1.0
        """Share of the labels that are read: less than all after `keep_labelled`."""
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

    def keep_labelled(self, labels: FloatArray) -> None:
        """Leave out the windows in which no event has one of the (N,) labels: all are NaN."""
        known = np.concatenate([[0], np.cumsum(~np.isnan(labels))])  # before each event of the log
        users = np.array([window.user for window in self.windows])
        starts = self.log.offsets[users] + [window.start for window in self.windows]
        stops = self.log.offsets[users] + [window.stop + 1 for window in self.windows]
        teaches, labels_in = known[stops] > known[starts], stops - starts
        self.read = float(labels_in[teaches].sum() / labels_in.sum())
        self.windows = [w for w, one in zip(self.windows, teaches, strict=True) if one]

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data begins, counted from 0."""
        self._epoch.fill_(epoch)


class WindowCollator:
    """Windows to one batch: encoded tensors, item labels and behaviour labels.

    Labels of feedback (NaN where none is asked) and the gap codes ``label_when`` from the last
    kept event to each label come with them where a head wants them.

    Labels are (B, L), one for each event that a window shows and for the one after. ``query_time``
    (B, L) is the token from whose state each is predicted: the last one of the last event before
    it that can be seen, or of the prompt for the first. Events that ``dropout`` leaves out are not
    rendered, the gap behind them is measured from the last event that is there, and every event
    remains a label (docs/decisions/0006-event-dropout.md).

    Args:
        log: Events of training.
        encoder: Renders the windows.
        dropout: Which events are left out; default: none.
        views: How windows are shown; default: as they are.
        contrast: Also render two views of every window: ``pairs``, an `EncodedBatch` of 2B rows by
            name, and ``owners`` (B,), see `training.contrastive`.
        feedback: What is asked of a feedback head; default: nothing.
        pseudo: Labels and weights to use instead of the log's own; default: those, all alike.
        when: Whether heads read the gap to the question.
        swaps: Also render every window with a feature of its user changed: ``swapped``, an
            `EncodedBatch` of B rows by name, and ``swapped_at`` (B, L) as ``query_time``; default:
            do not.

    Raises:
        ConfigError: A template of ``views`` does not say the same fields as the encoder's.
    """

    def __init__(
        self,
        log: BehaviorLog,
        encoder: Encoder,
        dropout: EventDropout | None = None,
        views: Views | None = None,
        *,
        contrast: bool = False,
        feedback: FeedbackHeadConfig | None = None,
        pseudo: WeightedLabels | None = None,
        when: bool = False,
        swaps: Swaps | None = None,
    ) -> None:
        self._log, self._encoder, self._swaps = log, encoder, swaps
        self._dropout, self._views = dropout or EventDropout(), views or Views()
        self._encoders = [encoder, *paraphrases(encoder, self._views.config.templates)]
        self._contrast, self._when = contrast, when
        self._feedback = None if feedback is None else feedback_labels(log, feedback)
        self._weights = None
        if pseudo is not None:
            self._feedback, self._weights = pseudo.labels, pseudo.weights

    def __call__(self, windows: Sequence[Window]) -> Inputs:
        """See the class."""
        whole = [self._log.at(w.user, w.stop + 1).keep(slice(w.start, None)) for w in windows]
        views = [self._views.trained(w.stop - w.start, **w.draws_by()) for w in windows]
        kept = [
            self._dropout.kept(len(view.shown), **w.draws_by())
            for view, w in zip(views, windows, strict=True)
        ]
        shown = [view.of(history) for view, history in zip(views, whole, strict=True)]
        batch, left_out = self._rendered(shown, views, kept)
        # A removal makes gaps longer, and so may their words: what no longer fits is left out.
        before = [
            (events_before(k, view.hidden) - n).clip(0)
            for k, view, n in zip(kept, views, left_out, strict=True)
        ]
        labels = self._encoder.vocabulary.columns(shown)
        places = _pad(np.concatenate(before), labels.lengths, 0)
        untaught = _untaught(windows, views)
        codes = {
            name: np.where(untaught, IGNORE, labels.codes[name]) for name in ("item", "behavior")
        }
        inputs = {
            **batch_inputs(batch),
            "labels": _pad(codes["item"], labels.lengths, IGNORE),
            "behavior_labels": _pad(codes["behavior"], labels.lengths, IGNORE),
            "query_time": batch.ends.gather(1, places),
        }
        if self._when:  # hidden events are there, so that the gap is measured from them
            rendered = [(events_before(k) - n).clip(0) for k, n in zip(kept, left_out, strict=True)]
            times = [
                h.timestamps[:-1][k][n:] for h, k, n in zip(shown, kept, left_out, strict=True)
            ]
            inputs["label_when"] = _pad(_gaps(shown, times, rendered), labels.lengths, 0)
        if self._feedback is not None:
            asked = [self._places(w, view) for w, view in zip(windows, views, strict=True)]
            found = np.where(untaught, np.nan, self._feedback[np.concatenate(asked)])
            inputs["feedback_labels"] = _pad(found, labels.lengths, np.nan)
            if self._weights is not None:
                weights = self._weights[np.concatenate(asked)]
                inputs["feedback_weights"] = _pad(weights, labels.lengths, 0.0)
        if self._swaps is not None and self._swaps.on:
            inputs |= self._swapped(self._swaps, windows, shown, views, kept)
        return inputs | self._pairs(windows, whole) if self._contrast else inputs

    def _swapped(
        self,
        swaps: Swaps,
        windows: Sequence[Window],
        shown: Sequence[History],
        views: Sequence[View],
        kept: Sequence[BoolArray],
    ) -> Inputs:
        """The same events of changed users; their words may leave room for more or fewer."""
        changed = [swaps.of(h, **w.draws_by()) for h, w in zip(shown, windows, strict=True)]
        batch, left_out = self._rendered(changed, views, kept)
        before = [
            (events_before(k, view.hidden) - n).clip(0)
            for k, view, n in zip(kept, views, left_out, strict=True)
        ]
        lengths = np.array([len(each) for each in before])
        places = _pad(np.concatenate(before), lengths, 0)
        return {"swapped": batch_inputs(batch), "swapped_at": batch.ends.gather(1, places)}

    def _rendered(
        self, shown: Sequence[History], views: Sequence[View], kept: Sequence[BoolArray]
    ) -> tuple[EncodedBatch, IntArray]:
        """The batch of the kept events of each view, and (B,) how many of them did not fit."""
        histories = [h.keep(slice(None, -1)).keep(k) for h, k in zip(shown, kept, strict=True)]
        template = np.array([view.template for view in views])
        parts, rows = [], []
        for number in np.unique(template):
            rows.append(np.flatnonzero(template == number))
            parts.append(self._encoders[number].encode([histories[row] for row in rows[-1]]))
        encoded, order = join(parts), np.argsort(np.concatenate(rows))
        batch, left_out = collate(encoded, order), encoded.left_out[order]
        if any(view.hidden.any() for view in views):
            visible = torch.ones(len(views), batch.ends.shape[1] - 1, dtype=torch.bool)
            for row, (view, k) in enumerate(zip(views, kept, strict=True)):
                seen = torch.from_numpy(~view.hidden[k][left_out[row] :])
                visible[row, : len(seen)] = seen
            batch = batch.hide(visible)
        return batch, left_out

    def _pairs(self, windows: Sequence[Window], whole: Sequence[History]) -> Inputs:
        pairs = [self._views.pair(w.stop - w.start, **w.draws_by()) for w in windows]
        views = [pair[side] for side in (0, 1) for pair in pairs]
        shown = [view.of(history) for view, history in zip(views, [*whole, *whole], strict=True)]
        everything = [np.ones(len(view.shown), dtype=bool) for view in views]
        batch, _ = self._rendered(shown, views, everything)
        owners = [w.user if w.stop > w.start else NOBODY for w in windows]
        return {"pairs": batch_inputs(batch), "owners": torch.tensor(owners)}

    def _places(self, window: Window, view: View) -> IntArray:
        """(M + 1,) where the labels of a view stand in the arrays of the log."""
        first = int(self._log.offsets[window.user]) + window.start
        return first + np.append(view.shown, view.after)


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
    """Rows of an evaluation set to one batch with what came (`Examples.answers`)."""

    def __init__(self, examples: Examples, encoder: Encoder) -> None:
        self._examples, self._encoder = examples, encoder

    def __call__(self, numbers: Sequence[int]) -> Inputs:
        """See the class."""
        histories = self._examples.histories(numbers)
        inputs = batch_inputs(collate(self._encoder.encode(histories)))
        return inputs | self._examples.answers(numbers, histories)


def batch_inputs(batch: EncodedBatch) -> Inputs:
    """The tensors of an `EncodedBatch` by name, as the Trainer moves them about."""
    return {name: getattr(batch, name) for name in batch.__slots__}


def _untaught(windows: Sequence[Window], views: Sequence[View]) -> BoolArray:
    """Which labels of all views are none, as they come before what their window teaches."""
    places = [w.start + np.append(v.shown, v.after) for w, v in zip(windows, views, strict=True)]
    taught = [window.taught for window in windows]
    return np.concatenate(places) < np.repeat(taught, [len(each) for each in places])


def _gaps(
    whole: Sequence[History], visible: Sequence[IntArray], before: Sequence[IntArray]
) -> IntArray:
    """Gap codes from the last event that is seen to each label, windows one after the other."""
    last = [np.append(0, times)[count] for times, count in zip(visible, before, strict=True)]
    known = np.concatenate(before) > 0
    asked = np.concatenate([history.timestamps for history in whole])
    return query_codes(np.concatenate(last), asked, known)


def _pad(codes: np.ndarray, lengths: np.ndarray, filler: float) -> Tensor:
    places = np.arange(int(lengths.max()))
    kind = np.float32 if codes.dtype.kind == "f" else np.int64
    padded = np.full((len(lengths), len(places)), filler, dtype=kind)
    padded[places < lengths[:, None]] = codes
    return torch.from_numpy(padded)
