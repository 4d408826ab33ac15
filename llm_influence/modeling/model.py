"""InfluenceModel: a language model that reads histories and predicts what comes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache

from llm_influence.config.model import ModelConfig
from llm_influence.config.rules import Rule
from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError
from llm_influence.modeling.adapters import Adapter, Body
from llm_influence.modeling.backbone import Backbone, encoder_masks, inference, mask_as_taken
from llm_influence.modeling.counts import AggregateFeatures, RepeatCounts, remembered
from llm_influence.modeling.embeddings import Embeddings, item_bags
from llm_influence.modeling.heads import (
    BehaviorHead,
    FeedbackHead,
    FeedbackScale,
    ItemHead,
    WhenEmbedding,
)
from llm_influence.modeling.recommendation import Recommendation, best_items
from llm_influence.modeling.scoring import ItemScores
from llm_influence.modeling.text_vectors import text_vectors
from llm_influence.rendering.batch import EncodedBatch, collate
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.rules.rule_book import RuleBook, RuleChange
from llm_influence.types import History

if TYPE_CHECKING:
    from llm_influence.modeling.session import Session


@dataclass(frozen=True, slots=True)
class Prediction:
    """What comes after B histories.

    Attributes:
        item_logits: (B, I) by item code.
        behavior_logits: (B, behaviours) by behaviour code.
        feedback: From (B,) item codes and (B,) behaviour codes to the (B,) feedback expected if
            these came next: log-odds, of a regression the label itself. None without such a head.
    """

    item_logits: Tensor
    behavior_logits: Tensor
    feedback: Callable[[Tensor, Tensor], Tensor] | None = None


class InfluenceModel(nn.Module):
    """Backbone, adapter, unit vectors and heads behind one interface.

    Use `InfluenceModel.build` to start one and `InfluenceModel.from_pretrained` to load one.

    Attributes:
        encoder: Renders histories; holds the vocabulary and the catalogue.
        config: The model's configuration.
        adapter: What is trained inside the backbone; its ``body`` computes the states.
        protocol: How the model was trained and measured, kept with its folder.
        facts: What a knowledge graph says of items, these and others; None without one.
    """

    body: Body
    units: Embeddings

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        encoder: Encoder,
        units: Embeddings,
        config: ModelConfig,
        feedback: FeedbackScale | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.encoder, self.config = backbone, encoder, config
        self.adapter, self.body, self.units = adapter, adapter.body, units
        if encoder.style == "token" and backbone.words is not None:  # units stand in for them
            backbone.words.requires_grad_(False)
        units.residual_dropout, units.first_item = config.residual_dropout, self.first_item
        repeats = None
        if config.item_head.repeats:
            repeats = RepeatCounts(backbone.width, backbone.input_width, slots=encoder.max_events)
        self.item_head = ItemHead(backbone.width, config.item_head, repeats)
        self.behavior_head = BehaviorHead(backbone.width, len(encoder.vocabulary.behaviors))
        self.feedback_head: FeedbackHead | None = None
        if feedback is not None:
            wanted = config.feedback_head
            totals = (
                None
                if wanted.aggregate_days is None
                else AggregateFeatures(encoder, wanted.aggregate_days)
            )
            self.feedback_head = FeedbackHead(
                backbone.width, len(encoder.vocabulary.behaviors), wanted, feedback, totals
            )
        self.when = WhenEmbedding(backbone.width) if config.when else None
        self.protocol: dict[str, object] = {}
        self.facts: ItemFacts | None = None
        self._rules: RuleBook | None = None

    @classmethod
    def build(
        cls, config: RunConfig, log: BehaviorLog, *, cache: Path | None = None
    ) -> InfluenceModel:
        """A model ready to be fine-tuned on ``log`` (events of training alone).

        Args:
            config: The run.
            log: Its events.
            cache: Folder that keeps the vectors of the items' texts for the next time.

        Raises:
            TemplateError, ModelError, AssetError, SchemaError, OutputError: see the parts.
            ConfigError: There are no labels that the feedback head could learn from, or an option
                does not fit the backbone.
        """
        from llm_influence.modeling.build import build_model

        return build_model(cls, config, log, cache=cache)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> InfluenceModel:
        """Load a model folder, ready to predict (eval mode, float32).

        Raises:
            ModelFolderError: A file, head or adapter key is missing or does not fit.
        """
        from llm_influence.modeling.saving import load_model

        return load_model(Path(folder))

    def save_pretrained(self, folder: str | Path, *, with_backbone: bool = True) -> None:
        """Write the model as one folder of safetensors and JSON.

        Args:
            folder: Made if it is not there.
            with_backbone: Also write the backbone, so that the folder needs nothing else. One that
                was tuned itself (``full``) is always written.

        Raises:
            OutputError: The folder cannot be written.
        """
        from llm_influence.modeling.saving import save_model

        save_model(self, Path(folder), with_backbone=with_backbone)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.units.words.device

    @property
    def catalogue(self) -> Catalogue:
        """The items the model can recommend."""
        return self.encoder.vocabulary.catalogue

    @property
    def counts(self) -> bool:
        """Whether a head counts what was seen (`modeling.repeats`, `modeling.totals`)."""
        return self.item_head.repeats is not None or self.totals is not None

    @property
    def totals(self) -> AggregateFeatures | None:
        """What the feedback head sums up over a history; None where it does not."""
        return None if self.feedback_head is None else self.feedback_head.totals

    @property
    def first_item(self) -> int:
        """Row of item 0 among the units."""
        pieces = self.encoder.token_cache
        return pieces.first_item if isinstance(pieces, IdTokenCache) else 0

    def add_items(self, items: Catalogue) -> None:
        """Add items that have only text: they can be recommended and stand in histories at once.

        With ``item_head.neighbors`` their vectors are mixed with those of the items known before
        that share entities with them, as far as `facts` knows the new ones.

        Raises:
            DuplicateError: An item id is already known.
            ModelError: The backbone itself was tuned (``full``): new texts need the untuned one.
        """
        vocabulary = self.encoder.vocabulary.with_catalogue(self.catalogue.extend(items))
        with inference(self), self.adapter.off():
            texts = text_vectors(self.backbone, list(items.texts))
        neighbors = self.config.item_head.neighbors
        mixed: tuple[Tensor, ...] = ()
        if self.facts is not None and neighbors.share_of_new:
            mixed = item_bags(
                self.facts,
                items.ids,
                count=neighbors.count,
                share=neighbors.share_of_new,
                first=len(self.units),
                first_item=self.first_item,
                known=self.catalogue.ids,
            )
        self.units.extend(texts, *mixed)
        self.encoder = self.encoder.with_vocabulary(vocabulary)
        self.rules = self.rules  # bound to the longer catalogue

    @property
    def rules(self) -> list[Rule]:
        """The rules that its recommendations, and their evaluation, follow; saved with it.

        They are set as `config.load_rules` reads them, after training as well as before.

        Raises:
            ConfigError: A field of a rule is not known to the model; names the rule and the field.
        """
        return [] if self._rules is None else self._rules.rules

    @rules.setter
    def rules(self, rules: Sequence[Rule]) -> None:
        book = RuleBook(rules, self.encoder.vocabulary, self.facts) if rules else None
        self._rules = book

    def rule_scores(self, histories: Sequence[History]) -> Tensor | None:
        """(B, I) what the rules add to the scores after B histories, -inf for what they exclude.

        None without rules.
        """
        if self._rules is None:
            return None
        return torch.from_numpy(self._rules.changes(histories)).to(self.device)

    # --- the model evaluation -----------------------------------------------------------------

    def embed(self, batch: EncodedBatch) -> Tensor:
        """(B, T, H) input vectors of the batch's tokens or units."""
        if self.encoder.style == "token":
            return self.units(batch.input_ids) + self.units.learned(batch.added_ids)
        return self.body.get_input_embeddings()(batch.input_ids)

    def states(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, T, H) states after every token.

        Args:
            batch: What to read.
            vectors: (B, T, H) input vectors to use instead of the batch's own.
        """
        vectors = self.embed(batch) if vectors is None else vectors
        return self.attend(batch, vectors).last_hidden_state

    def attend(
        self,
        batch: EncodedBatch,
        vectors: Tensor,
        cache: Any = None,  # noqa: ANN401
        **options: object,
    ) -> Any:  # noqa: ANN401
        """The backbone's own output for these input vectors; ``options`` go to the backbone.

        With a ``cache`` (`Backbone.new_cache`) of what was kept of a batch's first tokens,
        ``vectors`` are those of the tokens after them, (B, Q, H) instead of (B, T, H); what is kept
        of these is added.
        """
        total, queries = batch.input_ids.shape[1], vectors.shape[1]
        if self.backbone.kind == "recurrent":
            return self.body(vectors, batch.attention_mask[:, total - queries :], cache, **options)
        places = self.backbone.first_position + torch.arange(total, device=vectors.device)
        if cache is not None:
            options |= {"past_key_values": cache}
        if self.backbone.kind == "encoder":
            mask = encoder_masks(batch, self.body.config, vectors.dtype, queries)
        else:
            mask, options = batch.attention_mask.long(), options | {"use_cache": cache is not None}
        return self.body(
            inputs_embeds=vectors,
            attention_mask=mask,
            # hidden tokens keep their places: removal `mask` leaves all else where it was
            position_ids=places[total - queries :].expand(len(vectors), -1),
            **options,
        )

    def attend_pairs(
        self,
        vectors: Tensor,
        allowed: Tensor,
        positions: Tensor,
        cache: Cache | None = None,
    ) -> Tensor:
        """(B, Q, H) states of tokens that stand at any places and see whom they are told to.

        A row may hold tokens of several histories. What a token sees must agree with the model's
        own rule (`attend`), or its state is none that training has known.

        Args:
            vectors: (B, Q, H) input vectors.
            allowed: (B, Q, K) bool, True where a token may attend to another one; the last Q of
                the K are the tokens themselves, those before them are in the cache.
            positions: (B, K) place of every token in its history, from 0.
            cache: Keys and values of the first K - Q tokens; those of the others are added.
        """
        queries = vectors.shape[1]
        own = positions[:, -queries:]
        distance = (own[:, :, None] - positions[:, None, :]).abs()[:, None]
        options = {} if cache is None else {"past_key_values": cache}
        if self.backbone.kind == "decoder":
            options["use_cache"] = cache is not None
        states: Tensor = self.body(
            inputs_embeds=vectors,
            attention_mask=mask_as_taken(
                allowed[:, None], distance, self.body.config, vectors.dtype
            ),
            position_ids=self.backbone.first_position + own,
            **options,
        ).last_hidden_state
        return states

    def item_vectors(self) -> Tensor:
        """(I, H) vectors of the catalogue's items, as input and as output."""
        return self.units(slice(self.first_item, None))

    def item_scores(self, states: Tensor) -> ItemScores:
        """The logits of all items from (B, Q) states, a chunk at a time and without gradients."""
        if self.item_head.repeats is not None:  # counts are added to chances, which take all items
            return ItemScores.of(self.item_head(states, self.item_vectors()))

        def score(start: int, stop: int) -> Tensor:
            items = self.units(slice(self.first_item + start, self.first_item + stop))
            return self.item_head(states, items)

        return ItemScores(len(self.catalogue), score)

    def remember(
        self,
        states: Tensor,
        batch: EncodedBatch,
        places: Tensor,
        vectors: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, Q) states and behind them what was counted by then, if the model `counts`.

        If not, the states come back as they are, and Q is H.

        Args:
            states: (B, L, H) states at ``places``.
            batch: What was read.
            places: (B, L) last tokens of events, or of the prompt.
            vectors: (B, T, H) input vectors, where they are not the batch's own: a token counts by
                how much of its own vector is there.
            counted: (B, T) bool, False for tokens whose vector is not that of their word; default:
                all are.
        """
        if not self.counts:
            return states
        return remembered(self, states, batch, places, vectors, counted)

    def asked(self, states: Tensor, when: Tensor) -> Tensor:
        """(..., Q) states as heads see them: with the gap to the moment of the question, if ever.

        Args:
            states: (..., Q) states after the last event, as `remember` gives them.
            when: (...) gap codes (`EncodedBatch.when`).
        """
        if self.when is None:
            return states
        moved = self.when(when.to(states.device))
        return states + F.pad(moved, (0, states.shape[-1] - moved.shape[-1]))

    def heads(self, states: Tensor, items: Tensor | None = None) -> Prediction:
        """Predictions from (B, Q) states that have been `asked`.

        Args:
            states: The states.
            items: (I, H) item vectors, where they are made already.
        """
        items = self.item_vectors() if items is None else items
        feedback = None if self.feedback_head is None else partial(self.feedback, states)
        return Prediction(self.item_head(states, items), self.behavior_head(states), feedback)

    def feedback(self, states: Tensor, items: Tensor, behaviors: Tensor) -> Tensor:
        """(B,) feedback after (B, H) asked states: log-odds, of a regression the label itself.

        Args:
            states: The states.
            items: (B,) item codes of the candidates.
            behaviors: (B,) their behaviour codes.
        """
        items, behaviors = items.to(states.device), behaviors.to(states.device)
        with torch.inference_mode() if states.is_inference() else nullcontext():
            return self.trained_feedback.link.explained(
                self.feedback_scores(states, items, behaviors)
            )

    def feedback_scores(self, states: Tensor, items: Tensor, behaviors: Tensor) -> Tensor:
        """(N,) scores that the feedback head's link reads; arguments as in `feedback`."""
        return self.trained_feedback(states, self.units(self.first_item + items), behaviors)

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

    def forward(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Prediction:
        """Predict what comes after each history's last visible event."""
        return self.heads(self.query(batch, vectors))

    def query(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, Q) states after each history's last visible event, `asked`: to predict from."""
        return self.query_from(self.last_states(batch, vectors), batch, vectors)

    def query_from(
        self,
        states: Tensor,
        batch: EncodedBatch,
        vectors: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """(B, Q) what heads read, from the (B, H) states after each last visible event.

        It is what `remember`, with the same arguments, and then `asked` make of them.
        """
        last = batch.last()[:, None]
        seen = self.remember(states[:, None], batch, last, vectors, counted)[:, 0]
        return self.asked(seen, batch.when)

    def last_states(self, batch: EncodedBatch, vectors: Tensor | None = None) -> Tensor:
        """(B, H) states after each history's last visible event."""
        states = self.states(batch, vectors)
        rows = torch.arange(len(states), device=states.device)
        return states[rows, batch.last()]

    def gates(self, history: History) -> Tensor:
        """(E, H) how much of each element of the state each of a history's events lets through.

        The history is first cut to the events that fit the context. See
        `llm_influence.modeling.gates`.

        Raises:
            ModelError: The backbone is another one than ``recurrence``.
        """
        from llm_influence.modeling.recurrent import event_gates

        return event_gates(self, [self.encoder.trim(history)])[0]

    # --- for people -----------------------------------------------------------------------

    def predict(
        self, histories: Sequence[History], batch_size: int = 64
    ) -> Iterator[tuple[slice, Prediction]]:
        """Predictions of histories in batches, in order, with the rows that each covers."""
        for start in range(0, len(histories), batch_size):
            part = histories[start : start + batch_size]
            batch = collate(self.encoder.encode(part)).to(self.device)
            with inference(self):  # not around the yield: it would reach into the caller
                prediction = self(batch)
            yield slice(start, start + len(part)), prediction

    def score(self, histories: Sequence[History]) -> ItemScores:
        """The logits of all items after B histories, a chunk of items at a time, under `rules`."""
        batch = collate(self.encoder.encode(histories)).to(self.device)
        with inference(self):
            scores = self.item_scores(self.query(batch))
        changes = self.rule_scores(histories)
        return scores if changes is None else scores.under(changes)

    def recommend(
        self,
        history: History,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The k items most likely to come next, best first; ties go to the earlier catalogue row.

        Args:
            history: Of any user, seen in training or not; may be empty.
            k: How many; fewer come back when fewer are allowed.
            exclude_seen: Leave out items of the history.
            candidates: Item ids to choose among; default: the whole catalogue.

        Raises:
            UnknownNameError: An item or behaviour of the history, or a candidate, is not known.
            ExplanationError: ``k`` is below one.
        """
        scores = self.score([history])
        return self.choose(scores, history, k, exclude_seen=exclude_seen, candidates=candidates)

    def rule_changes(
        self, history: History, k: int = 10, *, exclude_seen: bool = True
    ) -> list[RuleChange]:
        """What the rules changed among the ``k`` recommendations: what is there, or would be.

        Args:
            history: Of any user.
            k: Length of the list.
            exclude_seen: As for `recommend`.
        """
        if self._rules is None:
            return []
        from llm_influence.modeling.recommendation import rule_changes

        return rule_changes(self, self._rules, history, k, exclude_seen=exclude_seen)

    def follow(self, history: History, *, keep: int | None = None) -> Session:
        """Predict for a history that goes on growing, reading each new event alone.

        See `llm_influence.modeling.growing.Session`.
        """
        from llm_influence.modeling.session import Session

        return Session(self, history, keep=keep)

    def choose(
        self,
        scores: ItemScores,
        history: History,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """`recommend` from ``scores`` that were already made of one ``history``."""
        return best_items(
            scores,
            history,
            k,
            vocabulary=self.encoder.vocabulary,
            effects=[] if self._rules is None else list(self._rules.effects(history)),
            exclude_seen=exclude_seen,
            candidates=candidates,
        )
