"""A history that grows by one event at a time, as in a live system.

A state depends on its own past alone, so what was read before stays as it was: the keys and
values that later tokens attend to are kept (the KV cache), of a recurrent backbone its state. A new
event costs the tokens of that event instead of the whole history's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llm_influence.errors import DataError, ModelError, UnknownNameError, choices
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.recommendation import Recommendation
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.types import Event, History

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel, Prediction


class Session:
    """One user's history, read once and then event by event.

    At every moment `prediction` equals that of ``model.predict([window])``, up to rounding.
    What is read anew is decided by the tokens themselves: as long as those already read are the
    beginning of those to read now, the rest is read alone, else all of it. All of it is read when
    the window has slid: the oldest event has left, and the one after it now reads "start" where
    it said how long it came after.

    The model must not be trained meanwhile; after that, call `reread`.

    Args:
        model: A model whose backbone keeps what it read: decoders, BERT-like encoders, recurrent
            ones.
        history: The events so far; may be empty.
        keep: What happens when the model's window (``max_events``, ``max_tokens``) is full. None:
            it slides by one at every event, so that the prediction is always that of the whole
            history, and every event from then on is a whole reading. A number K: the window is
            cut back to the last K events and grows again, so that a whole reading comes once in
            ``max_events - K + 1`` events, and the model sees between K and ``max_events`` of them.

    Attributes:
        history: Every event so far.
        window: The events that the prediction rests on.
        readings: Whole readings so far; the first one counts.

    Raises:
        ModelError: The backbone keeps no keys and values.
        UnknownNameError: An item or behaviour is not known to the model.
        DataError: ``keep`` is below one.
    """

    _batch: EncodedBatch  # the tokens read
    _cache: Any  # their keys and values, or a recurrent backbone's state
    _state: Tensor  # (1, H) after the last of them
    _prediction: Prediction | None  # made of the state

    def __init__(self, model: InfluenceModel, history: History, *, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise DataError(
                f"keep is {keep}",
                where="follow",
                expected="at least 1 event, or None",
                fix="keep half of the model's max_events",
            )
        vocabulary = model.encoder.vocabulary
        columns = vocabulary.columns([history])  # in the model's own codes from here on
        self.history = replace(
            history,
            items=columns.codes["item"],
            behaviors=columns.codes["behavior"],
            code_names=vocabulary.code_names,
        )
        self.model, self.keep, self.readings = model, keep, 0
        self.window, batch = self._encode(self.history)
        self._read_all(batch)

    def append(self, event: Event) -> None:
        """Add what the user has just done, and read it.

        Raises:
            UnknownNameError: The model does not know the item or behaviour.
            DataError: The event is older than the last one.
        """
        history = self._with(self.history, event)
        window, batch = self._encode(self._with(self.window, event))
        self.history, self.window = history, window  # nothing was refused
        read = self._batch.input_ids.shape[1]
        if not _begins_with(batch, self._batch):
            self._read_all(batch)
        else:
            self._batch = batch
            self._read(read)

    @property
    def prediction(self) -> Prediction:
        """What comes next, a batch of one; the scores are made when first asked for."""
        if self._prediction is None:
            with inference(self.model):
                self._prediction = self.model.heads(self._asked)
        return self._prediction

    @property
    def _asked(self) -> Tensor:
        """(1, Q) the state as heads see it."""
        return self.model.query_from(self._state, self._batch)

    def ask(self, moment: int | None) -> None:
        """Say when the next question is asked, for a model that reads "when"; nothing is read.

        It holds until the next event comes.

        Args:
            moment: Unix seconds; None where it is not known.

        Raises:
            DataError: The last event is later.
        """
        self.window = replace(self.window, query_time=moment)
        self.window, self._batch = self._encode(self.window)
        self.history, self._prediction = replace(self.history, query_time=moment), None

    def reread(self) -> None:
        """Read the whole window again: after the model's weights have changed."""
        self.window, batch = self._encode(self.window)
        self._read_all(batch)

    def recommend(
        self, k: int = 10, *, exclude_seen: bool = True, candidates: Sequence[str] | None = None
    ) -> list[Recommendation]:
        """The k items most likely to come next; see `InfluenceModel.recommend`."""
        with inference(self.model):
            scores = self.model.item_scores(self._asked)  # a chunk of a large catalogue at a time
        if (changes := self.model.rule_scores([self.history])) is not None:
            scores = scores.under(changes)
        return self.model.choose(
            scores, self.history, k, exclude_seen=exclude_seen, candidates=candidates
        )

    def _with(self, history: History, event: Event) -> History:
        vocabulary = self.model.encoder.vocabulary
        if event.behavior not in vocabulary.behaviors:
            raise UnknownNameError(
                f"unknown behaviour {event.behavior!r}",
                where=f"user {history.user_id!r}, the new event",
                expected=choices(vocabulary.behaviors, event.behavior),
                fix="rename the behaviour, or fine-tune on a log that has it",
            )
        late = history.timestamps[-1] - event.timestamp if len(history) else 0
        if late > 0:
            raise DataError(
                f"the new event is {late} s older than the last",
                where=f"user {history.user_id!r}",
                expected="events in time order",
                fix="follow the history anew with the event in its place",
            )
        value = np.nan if event.value is None else event.value
        return replace(
            history,
            items=np.append(history.items, vocabulary.catalogue.index([event.item])),
            behaviors=np.append(history.behaviors, vocabulary.behaviors.index(event.behavior)),
            timestamps=np.append(history.timestamps, event.timestamp),
            values=np.append(history.values, np.float32(value)),
            code_names=vocabulary.code_names,
            query_time=None,
        )

    def _encode(self, window: History) -> tuple[History, EncodedBatch]:
        """The events that are read and their tokens; a window that became too long is cut."""
        encoded = self.model.encoder.encode([window])
        left_out = int(encoded.left_out[0])
        if left_out:
            kept = len(window) - left_out
            window = window.keep(slice(-min(kept, self.keep or kept), None))
            encoded = self.model.encoder.encode([window])
        return window, collate(encoded).to(self.model.device)

    def _read_all(self, batch: EncodedBatch) -> None:
        self._cache = self.model.backbone.new_cache()
        self._batch = batch
        self.readings += 1
        self._read(0)

    def _read(self, start: int) -> None:
        """Read the tokens from place ``start`` on, with what came before in the cache."""
        with inference(self.model):
            batch = self._batch
            new = replace(
                batch, input_ids=batch.input_ids[:, start:], added_ids=batch.added_ids[:, start:]
            )
            vectors = self.model.embed(new)
            states: Tensor = self.model.attend(
                self._batch, vectors, cache=self._cache
            ).last_hidden_state
        self._state, self._prediction = states[:, -1], None
        self._check_cache()

    def _check_cache(self) -> None:
        read, kept = self._batch.input_ids.shape[1], self._cache.get_seq_length()
        if read != kept:
            backbone = self.model.backbone
            raise ModelError(
                f"{backbone.model.config.model_type} keeps keys and values of {kept} tokens "
                f"of {read}",
                where=f"follow, backbone {backbone.source!r}",
                expected="a backbone with a KV cache: a decoder, or a BERT-like encoder",
                fix="call model.predict([history]) at every event, or choose another backbone",
            )


def _begins_with(batch: EncodedBatch, read: EncodedBatch) -> bool:
    """Whether the tokens of ``read`` are the first ones of ``batch``, events included."""
    length = read.input_ids.shape[1]
    return batch.input_ids.shape[1] > length and all(
        torch.equal(ours[:, :length], theirs)
        for ours, theirs in (
            (batch.input_ids, read.input_ids),
            (batch.event_index, read.event_index),
            (batch.added_ids, read.added_ids),
        )
    )
