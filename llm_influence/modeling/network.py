"""The network: backbone, adapter, embeddings and heads as one `torch.nn.Module`.

From input to logits:

    embed(batch)                 (B, T, H) input vectors of the tokens
    attend(batch, vectors)       the backbone's output: hidden states, attention weights, cache
    states(batch), last_states   (B, T, H) hidden states of all tokens, (B, H) of the last ones
    query(batch)                 (B,) input of the heads at the query time of each history
    query_at(batch, places)      (B, L) the same at any places, before a query time is known
    at_time(query, gaps)         the input of the heads once the query time is known
    heads(query)                 `Prediction`: the logits
    network(batch)               heads(query(batch))

`InfluenceModel` adds files, histories, rules and recommendations.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from llm_influence.errors import ExplanationError, ModelError
from llm_influence.modeling.adapters import Body
from llm_influence.modeling.aggregates import AggregateFeatures
from llm_influence.modeling.backbone import encoder_masks, inference, mask_as_taken
from llm_influence.modeling.candidates import CandidateFeatures
from llm_influence.modeling.counts import QueryState, present_share, records_before
from llm_influence.modeling.embeddings import Embeddings
from llm_influence.modeling.heads import FeedbackHead
from llm_influence.modeling.parts import Parts
from llm_influence.modeling.positions import Positions
from llm_influence.modeling.recurrent import GatedRecurrence, event_gates
from llm_influence.modeling.scoring import ItemScores
from llm_influence.rendering.encoder import EncodedBatch


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction of the next event of B histories.

    Attributes:
        item_logits: (B, I) logits of the items.
        behavior_logits: (B, behaviours) logits of the behaviours.
        feedback: Function of (B,) item codes and (B,) behaviour codes. It gives the (B,) feedback
            expected on these candidates: log-odds, or the label of a regression. None for a model
            without feedback head.
    """

    item_logits: Tensor
    behavior_logits: Tensor
    feedback: Callable[[Tensor, Tensor], Tensor] | None = None


class Network(nn.Module):
    """Backbone, adapter, embeddings and heads; the module docstring lists the methods.

    Attributes:
        backbone: The backbone.
        adapter: The adapter; its ``body`` computes the states.
        embeddings: Vectors of the tokens of style ``token``, items included.
        item_head, behavior_head, feedback_head: The heads; ``feedback_head`` may be None.
        when: Embedding of the gap to the query time; None for a model that does not read it.
        encoder: Encoder of histories.
        config: Options of the model.
        positions: Positions of the tokens.
    """

    body: Body
    embeddings: Embeddings

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.backbone, self.encoder, self.config = parts.backbone, parts.encoder, parts.config
        self.adapter, self.body = parts.adapter, parts.adapter.body
        self.embeddings = parts.embeddings
        self.item_head, self.behavior_head, self.feedback_head, self.when = parts.heads
        self.positions = Positions.of(self.config, self.backbone, self.encoder)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embeddings.words.device

    @property
    def first_item(self) -> int:
        """Token id of item 0."""
        return self.embeddings.first_item

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return len(self.embeddings) - self.first_item

    @property
    def aggregates(self) -> AggregateFeatures | None:
        """Aggregate features of the feedback head; None for a model without them."""
        return None if self.feedback_head is None else self.feedback_head.aggregates

    @property
    def candidates(self) -> CandidateFeatures | None:
        """Candidate features of the feedback head; None for a model without them."""
        return None if self.feedback_head is None else self.feedback_head.candidates

    @property
    def reads_events(self) -> bool:
        """Whether a head reads events beside the state: by memory, aggregates or candidates."""
        beside = (self.item_head.memory, self.aggregates, self.candidates)
        return any(part is not None for part in beside)

    # --- from tokens to states ------------------------------------------------------------

    def embed(self, batch: EncodedBatch) -> Tensor:
        """(B, T, H) input vectors of the batch's tokens."""
        if self.encoder.style == "token":
            return self.embeddings(batch.input_ids) + self.embeddings.learned(batch.added_ids)
        return self.body.get_input_embeddings()(batch.input_ids)

    def attend(
        self,
        batch: EncodedBatch,
        vectors: Tensor,
        cache: Any = None,  # noqa: ANN401
        **options: object,
    ) -> Any:  # noqa: ANN401
        """The backbone's output for input vectors.

        Args:
            batch: B histories of T tokens.
            vectors: (B, T, H) input vectors. With a cache: (B, Q, H), those of the last Q tokens.
            cache: Cache of the first T - Q tokens (`Backbone.new_cache`); the last Q are added.
            options: Passed on to the backbone.
        """
        total, queries = batch.input_ids.shape[1], vectors.shape[1]
        if self.backbone.kind == "recurrent":
            return self.body(vectors, batch.attention_mask[:, total - queries :], cache, **options)
        places = self.positions(batch, random=self.training)[:, total - queries :]
        if cache is not None:
            options |= {"past_key_values": cache}
        if self.backbone.kind == "encoder":
            mask = encoder_masks(batch, self.body.config, vectors.dtype, queries)
        else:
            mask, options = batch.attention_mask.long(), options | {"use_cache": cache is not None}
        return self.body(
            inputs_embeds=vectors,
            attention_mask=mask,
            position_ids=places.expand(len(vectors), -1),
            **options,
        )

    def attend_pairs(
        self,
        vectors: Tensor,
        allowed: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, Q, H) states of tokens with any positions and any attention mask.

        A row may hold tokens of several histories. The mask must agree with that of `attend`:
        training has no other states.

        Args:
            vectors: (B, Q, H) input vectors.
            allowed: (B, Q, K) bool, True where a token may attend to another one. The last Q of
                the K tokens are the tokens themselves, those before them are in the cache.
            positions: (B, K) position of every token in its history, from 0.
            cache: Keys and values of the first K - Q tokens; the last Q are added.
        """
        queries = vectors.shape[1]
        own = positions[:, -queries:]
        distance = (own[:, :, None] - positions[:, None, :]).abs()[:, None]
        options = {} if cache is None else {"past_key_values": cache}
        if self.backbone.kind == "decoder":
            options["use_cache"] = cache is not None
        config = self.body.config
        states: Tensor = self.body(
            inputs_embeds=vectors,
            attention_mask=mask_as_taken(allowed[:, None], distance, config, vectors.dtype),
            position_ids=self.positions.first + own,
            **options,
        ).last_hidden_state
        return states

    def states(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, T, H) states after every token.

        Args:
            batch: B histories of T tokens.
            vectors: (B, T, H) input vectors; default: the batch's own.
        """
        vectors = self.embed(batch) if vectors is None else vectors
        return self.attend(batch, vectors).last_hidden_state

    def last_states(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, H) states after each history's last visible token; arguments as in `states`."""
        states = self.states(batch, vectors)
        return states[torch.arange(len(states), device=states.device), batch.last()]

    # --- from states to the input of the heads --------------------------------------------

    def query(
        self,
        batch: EncodedBatch,
        vectors: Tensor | None = None,
        *,
        states: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> QueryState:
        """(B,) input of the heads after each history's last visible event, at its query time.

        Args:
            batch: B histories of T tokens.
            vectors: (B, T, H) input vectors; default: the batch's own.
            states: (B, H) states after the last visible tokens; default: computed.
            counted: (B, T) bool, False for tokens whose vector is another one's; default: all True.
        """
        states = self.last_states(batch, vectors) if states is None else states
        if not self.reads_events:
            return self.at_time(QueryState(states), batch.when)
        presence = self._presence(batch, vectors, counted)
        places, events = batch.last()[:, None], batch.records[:, None]
        query = self._beside(states[:, None], batch, places, presence, events)[:, 0]
        if (memory := self.item_head.memory) is not None:
            records = memory.aged(batch.records, batch.gap)
            query = replace(query, records=records, presence=batch.event_means(presence))
        return self.at_time(query, batch.when)

    def query_at(
        self,
        batch: EncodedBatch,
        places: Tensor,
        vectors: Tensor | None = None,
        folds: Tensor | None = None,
    ) -> QueryState:
        """(B, L) input of the heads at any places, before `at_time`.

        The memory is left out in training: the language model is trained alone.

        Args:
            batch: B histories of T tokens.
            places: (B, L) last tokens of events, or of the prompt.
            vectors: (B, T, H) input vectors of the states; counts always use the batch's own.
            folds: (B,) folds of users whose labels are trained, see `CandidateFeatures`; default:
                none is left out.

        Raises:
            ModelError: There are several places, and positions count from the end of a history.
        """
        if places.shape[1] > 1 and not self.positions.fixed(random=self.training):
            raise ModelError(
                "predictions after several events of one history",
                where="model.positions = end",
                expected="one prediction a history, as all positions change with every event",
                fix="train with train.examples prefixes; for this analysis, use positions start",
            )
        states = torch.take_along_dim(self.states(batch, vectors), places[..., None], dim=1)
        presence = self._presence(batch, None, None)
        records, before = records_before(batch, places)
        query = self._beside(states, batch, places, presence, records, folds)
        if self.item_head.memory is None or self.training:
            return query
        return replace(
            query, records=records, presence=before * batch.event_means(presence)[:, None]
        )

    def at_time(self, query: QueryState, gaps: Tensor) -> QueryState:
        """Add the gap from the last event to the query time, if the model reads it.

        Args:
            query: (...) states.
            gaps: (...) gap codes, as in `EncodedBatch.when`.
        """
        if self.when is None:
            return query
        return replace(query, hidden=query.hidden + self.when(gaps.to(query.hidden.device)))

    def _presence(
        self, batch: EncodedBatch, vectors: Tensor | None, counted: Tensor | None
    ) -> Tensor:
        """(B, T) share of each token that is present; arguments as in `query`."""
        present = batch.attention_mask & (batch.event_index >= 0)
        present = present if counted is None else present & counted
        presence = present.float()
        if vectors is not None:
            presence = presence * present_share(vectors, self.embed(batch).detach())
        return presence

    def _beside(
        self,
        states: Tensor,
        batch: EncodedBatch,
        places: Tensor,
        presence: Tensor,
        records: Tensor,
        folds: Tensor | None = None,
    ) -> QueryState:
        """The (B, L, H) states at (B, L) places with the features of the events up to there."""
        query = QueryState(states)
        if self.aggregates is not None:
            hidden = states.to(torch.promote_types(states.dtype, torch.float32))
            query = QueryState(hidden, aggregates=self.aggregates(batch, places, presence))
        if self.candidates is not None:
            query = self.candidates.beside(query, batch, records, presence, folds)
        return query

    # --- from the input of the heads to logits --------------------------------------------

    def forward(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Prediction:
        """Predict the next event after each history's last visible event."""
        return self.heads(self.query(batch, vectors))

    def heads(self, query: QueryState, items: Tensor | None = None) -> Prediction:
        """Predictions from (B,) states.

        Args:
            query: (B,) input of the heads.
            items: (I, H) item vectors, if they are known; default: computed.
        """
        items = self.item_vectors() if items is None else items
        feedback = None if self.feedback_head is None else partial(self.feedback, query)
        return Prediction(self.item_head(query, items), self.behavior_head(query.hidden), feedback)

    def feedback(self, query: QueryState, items: Tensor, behaviors: Tensor) -> Tensor:
        """(B,) feedback expected on candidates: log-odds, or the label of a regression.

        Args:
            query: (B,) input of the heads.
            items: (B,) item codes of the candidates.
            behaviors: (B,) behaviour codes of the candidates.
        """
        device = query.hidden.device
        items, behaviors = items.to(device), behaviors.to(device)
        with torch.inference_mode() if query.hidden.is_inference() else nullcontext():
            scores = self.feedback_scores(query, items, behaviors)
            return self.trained_feedback.link.explained(scores)

    def feedback_scores(self, query: QueryState, items: Tensor, behaviors: Tensor) -> Tensor:
        """(B,) scores that the link of the feedback head reads; arguments as in `feedback`."""
        vectors = self.embeddings(self.first_item + items)
        return self.trained_feedback(query, vectors, behaviors, items)

    @property
    def trained_feedback(self) -> FeedbackHead:
        """The feedback head.

        Raises:
            ExplanationError: The model has none.
        """
        if self.feedback_head is None:
            raise ExplanationError(
                "the model has no feedback head",
                where="model.feedback_head.weight",
                expected="a model that was trained to predict feedback",
                fix="fine-tune with model.feedback_head.weight above 0",
            )
        return self.feedback_head

    def item_vectors(self) -> Tensor:
        """(I, H) vectors of the items, as input and as output."""
        return self.embeddings(slice(self.first_item, None))

    def item_scores(self, query: QueryState) -> ItemScores:
        """Logits of all items from (B,) states, a chunk at a time and without gradients."""
        head, memory = self.item_head, self.item_head.memory

        def logits(start: int, stop: int) -> Tensor:
            items = self.embeddings(slice(self.first_item + start, self.first_item + stop))
            return head.language_logits(query, items)

        if memory is None or query.records is None or query.presence is None:
            return ItemScores(self.num_items, logits)
        return ItemScores(self.num_items, memory.reader(logits, query.records, query.presence))

    def event_gates(self, batch: EncodedBatch) -> Tensor:
        """(B, E, H) gates of the events, for the backbone ``recurrence``.

        Raises:
            ModelError: The backbone is another one.
        """
        if not self.has_gates:
            raise ModelError(
                f"the backbone {self.backbone.source!r} has no gates",
                where="gates",
                expected="a model with backbone 'recurrence'",
                fix="train one with model.backbone recurrence, or explain with a method",
            )
        with inference(self):
            return event_gates(self.backbone.model.cell, self.embed(batch), batch)

    @property
    def has_gates(self) -> bool:
        """Whether the backbone is the gated recurrence."""
        return isinstance(getattr(self.backbone.model, "cell", None), GatedRecurrence)
