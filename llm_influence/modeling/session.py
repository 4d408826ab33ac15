"""Sessions: predictions for one user whose history grows event by event.

A state depends only on earlier tokens, so a new event needs only its own tokens. What attention
reads of the earlier ones is kept in a cache: keys and values, or the state of a recurrent backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_influence.errors import DataError, ModelError, UnknownNameError, out_of_range, unknown
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.network import Network, Prediction
from llm_influence.modeling.scoring import Recommendation, best_items
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.rules.rule_book import RuleBook
from llm_influence.types import Event, History


class Session:
    """The history of one user, read once and then event by event.

    `prediction` always equals that of ``model.predict([window])``, up to rounding. If the tokens of
    the window start with those already read, only the rest is read. If the window has moved, it
    is read as a whole: its oldest event is gone, and the next one now has the gap "start". With
    ``model.positions: end`` every event reads the whole window.

    Do not train the model during a session, or call `reread` afterwards.

    Args:
        model: A model whose backbone has a cache: a decoder, a BERT-like encoder or a recurrent
            one.
        history: The events so far; may be empty.
        keep: What happens when the window (``max_events``, ``max_tokens``) is full. None: it moves
            by one event at a time, and every event from then on reads the whole window. K: it is
            cut to the last K events and grows again, so that one event in ``max_events - K + 1``
            reads the whole window, and the model sees between K and ``max_events`` events.

    Attributes:
        history: All events so far.
        window: The events behind the prediction.
        readings: Number of times that the whole window was read, the first one included.

    Raises:
        ModelError: The backbone has no cache.
        UnknownNameError: The model lacks an item or behaviour.
        DataError: ``keep`` is below one.
    """

    _batch: EncodedBatch  # the tokens read
    _cache: Any  # their keys and values, or the state of a recurrent backbone
    _state: Tensor  # (1, H) after the last of them
    _prediction: Prediction | None  # computed from the state when it is needed

    def __init__(self, model: Network, history: History, *, keep: int | None = None) -> None:
        if keep is not None and keep < 1:
            raise out_of_range(DataError, "keep", keep, expected="at least 1 event, or None")
        vocabulary = model.encoder.vocabulary
        columns = vocabulary.columns([history])
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
        """Add a new event and read it.

        Raises:
            UnknownNameError: The model lacks the item or behaviour.
            DataError: The event is older than the last one.
        """
        history = self._with(self.history, event)
        window, batch = self._encode(self._with(self.window, event))
        self.history, self.window = history, window  # only after all checks
        start = self._batch.input_ids.shape[1]
        fixed = self.model.config.positions == "start"  # else all tokens have new positions
        if fixed and _starts_with(batch, self._batch):
            self._batch = batch
            self._read(start)
        else:
            self._read_all(batch)

    @property
    def prediction(self) -> Prediction:
        """Prediction of the next event, a batch of one; computed at the first access."""
        if self._prediction is None:
            with inference(self.model):
                self._prediction = self.model.heads(self._query())
        return self._prediction

    def ask(self, moment: int | None) -> None:
        """Set the query time, for a model that reads "when"; it holds until the next event.

        Args:
            moment: Unix seconds; None for an unknown time.

        Raises:
            DataError: The last event is later.
        """
        self.window = replace(self.window, query_time=moment)
        self.window, self._batch = self._encode(self.window)
        self.history, self._prediction = replace(self.history, query_time=moment), None

    def reread(self) -> None:
        """Read the whole window again, after the model's weights have changed."""
        self.window, batch = self._encode(self.window)
        self._read_all(batch)

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The k items most likely to come next; see `InfluenceModel.recommend`."""
        with inference(self.model):
            scores = self.model.item_scores(self._query())
        rules: RuleBook | None = getattr(self.model, "rule_book", None)  # a network has none
        own = bool(getattr(self.model, "exclude_seen", True))
        if rules is not None:
            scores = scores.under(torch.from_numpy(rules.changes([self.history])))
        return best_items(
            scores,
            self.history,
            k,
            vocabulary=self.model.encoder.vocabulary,
            rules=rules,
            exclude_seen=own if exclude_seen is None else exclude_seen,
            candidates=candidates,
        )

    def _query(self) -> QueryState:
        """(1,) input of the heads."""
        return self.model.query(self._batch, states=self._state)

    def _with(self, history: History, event: Event) -> History:
        """A history with one more event."""
        vocabulary, user = self.model.encoder.vocabulary, f"user {history.user_id!r}"
        if event.behavior not in vocabulary.behaviors:
            raise unknown(
                UnknownNameError,
                "behaviour",
                event.behavior,
                vocabulary.behaviors,
                where=f"{user}, the new event",
                fix="rename the behaviour, or fine-tune on a log that has it",
            )
        late = history.timestamps[-1] - event.timestamp if len(history) else 0
        if late > 0:
            raise DataError(
                f"the new event is {late} s older than the last",
                where=user,
                expected="events in time order",
                fix="start a new session with the event at its place in the history",
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
        """The window, cut if it is too long, and its tokens."""
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
        """Read the tokens from position ``start`` on; the earlier ones are in the cache."""
        batch = self._batch
        new = replace(
            batch, input_ids=batch.input_ids[:, start:], added_ids=batch.added_ids[:, start:]
        )
        with inference(self.model):
            output = self.model.attend(batch, self.model.embed(new), cache=self._cache)
        self._state, self._prediction = output.last_hidden_state[:, -1], None
        read, kept = batch.input_ids.shape[1], self._cache.get_seq_length()
        if read != kept:
            backbone = self.model.backbone
            raise ModelError(
                f"{backbone.model.config.model_type} caches {kept} of {read} tokens",
                where=f"session, backbone {backbone.source!r}",
                expected="a backbone with a KV cache: a decoder, or a BERT-like encoder",
                fix="call model.predict([history]) at every event, or choose another backbone",
            )


def _starts_with(batch: EncodedBatch, read: EncodedBatch) -> bool:
    """Whether the tokens of ``batch`` start with those of ``read``, of the same events."""
    length = read.input_ids.shape[1]
    return batch.input_ids.shape[1] > length and all(
        torch.equal(getattr(batch, name)[:, :length], getattr(read, name))
        for name in ("input_ids", "event_index", "added_ids")
    )
