"""Batches of training windows and of evaluation examples.

Training histories are cut into windows that fit the context. Every event is a label at least once.
"""

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
from llm_influence.modeling.candidates import user_folds
from llm_influence.rendering.encoder import EncodedBatch, Encoder, collate, join
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
"""Label of a position without a loss, as in torch and transformers."""

LABELLED = (
    *("labels", "behavior_labels", "query_time", "label_when"),
    *("feedback_labels", "feedback_weights", "swapped_at"),
)
"""Inputs with a column for each label of a window."""

Inputs = dict[str, Any]
"""Tensors by name; a second batch is a dict inside."""


@dataclass(frozen=True, slots=True)
class Window:
    """A range of events of one user.

    Attributes:
        user: Number of the user in the log.
        start: Position of the first event in the user's history.
        stop: Position after the last event that is read. The event there is a label too.
        epoch: Number of the epoch; random draws depend on it.
        first_label: Position from which events are labels; earlier ones are only read.
        last_only: Whether the event after the last one that is read is the only label.
    """

    user: int
    start: int
    stop: int
    epoch: int = 0
    first_label: int = 0
    last_only: bool = False

    def draws_by(self) -> dict[str, int]:
        """The numbers that random draws for the window depend on, beside the seed."""
        # prefixes of a history may start at the same event
        start = self.stop if self.last_only else self.start
        return {"epoch": self.epoch, "user": self.user, "start": start}


@dataclass(frozen=True, slots=True, eq=False)
class WeightedLabels:
    """Feedback labels of the N events of a log, with weights.

    Attributes:
        labels: (N,) float32, NaN without a label.
        weights: (N,) float32. Their mean is the share of events with a label of their own, so
            pseudo-labels do not change the weight of feedback as a whole.
    """

    labels: FloatArray
    weights: FloatArray


class WindowDataset(Dataset[Window]):
    """Windows of all users, cut backwards from each user's last event, so the newest is full.

    The last training event of a user is only a label: nothing follows it. A user's only event is
    predicted from the prompt.

    With ``prefixes`` every event of the log is the single label of a window of its own, which holds
    the last events before it (docs/how-to/training_options.md).

    Args:
        log: Training events.
        encoder: Gives the number of events that fit.
        prefixes: Whether every prefix of a history is a window with one label.

    Attributes:
        windows: The windows.
        read: Share of the labels that are read; below 1 only after `keep_labelled`.
    """

    def __init__(self, log: BehaviorLog, encoder: Encoder, *, prefixes: bool = False) -> None:
        self.log = log
        self._epoch = torch.zeros(
            (), dtype=torch.int64
        ).share_memory_()  # shared with loader workers
        self.read = 1.0
        stops = np.diff(log.offsets) - 1
        users = np.arange(len(log))
        self.windows: list[Window] = []
        while len(users):
            encoded = encoder.encode([log.at(int(user), int(stops[user])) for user in users])
            for user, start in zip(users, encoded.left_out, strict=True):
                window = Window(int(user), int(start), int(stops[user]), last_only=prefixes)
                self.windows.append(window)
            left = stops[users] if prefixes else encoded.left_out
            stops[users] = left - prefixes
            users = users[left > 0]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        """One window, with the current epoch; the collator renders it."""
        return replace(self.windows[index], epoch=int(self._epoch))

    def keep_labelled(self, labels: FloatArray) -> None:
        """Remove windows without a label; (N,) labels are NaN where there is none."""
        known = np.concatenate([[0], np.cumsum(~np.isnan(labels))])  # before each event of the log
        users = np.array([window.user for window in self.windows])
        firsts = [window.stop if window.last_only else window.start for window in self.windows]
        starts = self.log.offsets[users] + firsts
        stops = self.log.offsets[users] + [window.stop + 1 for window in self.windows]
        labelled, sizes = known[stops] > known[starts], stops - starts
        self.read = float(sizes[labelled].sum() / sizes.sum())
        self.windows = [w for w, keep in zip(self.windows, labelled, strict=True) if keep]

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, from 0."""
        self._epoch.fill_(epoch)


class WindowCollator:
    """Collates windows into one batch of tensors for `NextEventObjective`.

    ``labels`` and ``behavior_labels`` (B, L) hold one label for each event of a window and one for
    the event after it. ``query_time`` (B, L) is the token whose state predicts each of them: the
    last token of the last visible event before it, or of the prompt. ``feedback_labels`` and
    ``feedback_weights`` (B, L), ``folds`` (B,) of the users and ``label_when`` (B, L), gap codes
    from the last kept event to each label, are there if a head reads them. Windows with a single
    label have one column, L = 1, so heads and features are computed there alone.

    Events that ``dropout`` removes are not rendered but remain labels; the next gap is measured
    from the last event that is kept (docs/decisions/0006-event-dropout.md).

    Args:
        log: Training events.
        encoder: Renders the windows.
        dropout: Removes events; default: none.
        views: Augments windows; default: no augmentation.
        contrast: Also render two views of every window: ``pairs``, an `EncodedBatch` of 2B rows by
            name, and ``owners`` (B,), see `contrastive_loss`.
        feedback: Configuration of the feedback head; default: no feedback.
        pseudo: Labels and weights that replace the log's own; default: the log's, of weight 1.
        when: Whether heads read the gap to the query time.
        swaps: Also render every window with one user feature changed: ``swapped``, an
            `EncodedBatch` of B rows by name, and ``swapped_at`` (B, L) as ``query_time``; default:
            no.

    Raises:
        ConfigError: A template of ``views`` does not have the fields of the encoder's template.
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
        if self._feedback is not None:
            self._folds = user_folds(log.user_ids.to_pylist())

    def __call__(self, windows: Sequence[Window]) -> Inputs:
        """The batch of B windows."""
        whole = [self._log.at(w.user, w.stop + 1).keep(slice(w.start, None)) for w in windows]
        views = [self._views.trained(w.stop - w.start, **w.draws_by()) for w in windows]
        kept = [
            self._dropout.kept(len(view.shown), **w.draws_by())
            for view, w in zip(views, windows, strict=True)
        ]
        shown = [view.of(history) for view, history in zip(views, whole, strict=True)]
        batch, left_out = self._rendered(shown, views, kept)
        labels = self._encoder.vocabulary.columns(shown)
        positions, unused = self._positions(windows, views)

        def column(codes: np.ndarray, filler: float) -> Tensor:
            return _pad(np.where(unused, filler, codes), labels.lengths, filler)

        inputs = {
            **batch_inputs(batch),
            "labels": column(labels.codes["item"], IGNORE),
            "behavior_labels": column(labels.codes["behavior"], IGNORE),
            "query_time": _query_times(batch, views, kept, left_out),
        }
        if self._when:  # hidden events are in the batch, so the gap is measured from them
            before = [(events_before(k) - n).clip(0) for k, n in zip(kept, left_out, strict=True)]
            times = [
                h.timestamps[:-1][k][n:] for h, k, n in zip(shown, kept, left_out, strict=True)
            ]
            inputs["label_when"] = _pad(_gaps(shown, times, before), labels.lengths, 0)
        if self._feedback is not None:
            inputs["feedback_labels"] = column(self._feedback[positions], np.nan)
            inputs["folds"] = torch.from_numpy(self._folds[[w.user for w in windows]])
        if self._weights is not None:
            inputs["feedback_weights"] = _pad(self._weights[positions], labels.lengths, 0.0)
        if self._swaps is not None and self._swaps.on:
            of = self._swaps.of
            changed = [of(h, **w.draws_by()) for h, w in zip(shown, windows, strict=True)]
            # other words may leave room for more or fewer events
            swapped, left_out = self._rendered(changed, views, kept)
            inputs["swapped"] = batch_inputs(swapped)
            inputs["swapped_at"] = _query_times(swapped, views, kept, left_out)
        if windows[0].last_only:
            last = torch.from_numpy(labels.lengths - 1)[:, None]
            inputs |= {name: inputs[name].gather(1, last) for name in LABELLED if name in inputs}
        return inputs | self._pairs(windows, whole) if self._contrast else inputs

    def _rendered(
        self, shown: Sequence[History], views: Sequence[View], kept: Sequence[BoolArray]
    ) -> tuple[EncodedBatch, IntArray]:
        """The batch of the kept events of each view, and (B,) numbers of events left out of it."""
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

    def _positions(
        self, windows: Sequence[Window], views: Sequence[View]
    ) -> tuple[IntArray, BoolArray]:
        """Positions in the log of the labels of all views, and whether each is left out."""
        places = [
            w.start + np.append(v.shown, v.after) for w, v in zip(windows, views, strict=True)
        ]
        sizes = [len(part) for part in places]
        first, users = [w.first_label for w in windows], [w.user for w in windows]
        offsets = np.repeat(self._log.offsets[users], sizes)
        return np.concatenate(places) + offsets, np.concatenate(places) < np.repeat(first, sizes)


class ExampleDataset(Dataset[int]):
    """The examples of an evaluation set, by number."""

    def __init__(self, rows: EvaluationSet) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """The number of the example; the collator renders it."""
        return index


class ExampleCollator:
    """Collates examples of an evaluation set, with their targets (`Examples.answers`)."""

    def __init__(self, examples: Examples, encoder: Encoder) -> None:
        self._examples, self._encoder = examples, encoder

    def __call__(self, numbers: Sequence[int]) -> Inputs:
        """The batch of the numbered examples."""
        histories = self._examples.histories(numbers)
        inputs = batch_inputs(collate(self._encoder.encode(histories)))
        return inputs | self._examples.answers(numbers, histories)


def batch_inputs(batch: EncodedBatch) -> Inputs:
    """The tensors of an `EncodedBatch` by name, for the Trainer."""
    return {name: getattr(batch, name) for name in batch.__slots__}


def encoded_batch(inputs: Inputs) -> EncodedBatch:
    """The `EncodedBatch` among the inputs of a micro-batch."""
    return EncodedBatch(**{name: inputs[name] for name in EncodedBatch.__slots__})


def _query_times(
    batch: EncodedBatch,
    views: Sequence[View],
    kept: Sequence[BoolArray],
    left_out: IntArray,
) -> Tensor:
    """(B, L) the token that predicts each label; removed events make gaps, and texts, longer."""
    before = [
        (events_before(k, view.hidden) - n).clip(0)
        for k, view, n in zip(kept, views, left_out, strict=True)
    ]
    lengths = np.array([len(counts) for counts in before])
    return batch.ends.gather(1, _pad(np.concatenate(before), lengths, 0))


def _gaps(
    whole: Sequence[History], visible: Sequence[IntArray], before: Sequence[IntArray]
) -> IntArray:
    """Gap codes from the last event in the batch to each label, of all windows in one array."""
    last = [np.append(0, times)[count] for times, count in zip(visible, before, strict=True)]
    known = np.concatenate(before) > 0
    times = np.concatenate([history.timestamps for history in whole])
    return query_codes(np.concatenate(last), times, known)


def _pad(codes: np.ndarray, lengths: np.ndarray, filler: float) -> Tensor:
    """(B, L) tensor of B arrays, which are concatenated in ``codes``."""
    places = np.arange(int(lengths.max()))
    kind = np.float32 if codes.dtype.kind == "f" else np.int64
    padded = np.full((len(lengths), len(places)), filler, dtype=kind)
    padded[places < lengths[:, None]] = codes
    return torch.from_numpy(padded)
