"""InfluenceModel: a language model that reads histories and predicts the next event."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from llm_influence.config.rules import Rule
from llm_influence.config.run import RunConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import DataError, check_type
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.build import build_parts, check_causality
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.embeddings import item_bags, text_vectors
from llm_influence.modeling.ensemble import (
    ENSEMBLE,
    Averaged,
    check_members,
    checked_weights,
    read_ensemble,
)
from llm_influence.modeling.heads import Heads
from llm_influence.modeling.item_links import nearest_items
from llm_influence.modeling.network import Network, Prediction
from llm_influence.modeling.parts import Parts
from llm_influence.modeling.saving import load_parts, save_parts
from llm_influence.modeling.scoring import ItemScores, Recommendation, best_items, rule_changes
from llm_influence.modeling.session import Session
from llm_influence.modeling.sharing import find_folder, push_folder
from llm_influence.rendering.encoder import EncodedBatch, collate
from llm_influence.rules.rule_book import RuleBook, RuleChange
from llm_influence.types import History


class InfluenceModel(Network):
    """A model with its files, rules and recommendations.

    Use `InfluenceModel.build` for an untrained model and `InfluenceModel.from_pretrained` for a
    trained one. `Network` has the methods on tensors.

    Attributes:
        facts: Facts of a knowledge graph on items; None without a graph.
        protocol: Data, split and protocol of the test metrics; saved with the model.
        rule_book: The rules, ready to be applied; None without rules. Set it through `rules`.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.protocol: dict[str, Any] = parts.protocol
        self.facts: ItemFacts | None = parts.facts
        self.rule_book: RuleBook | None = None
        self.rules = parts.rules

    @classmethod
    def build(cls, config: RunConfig, log: BehaviorLog, *, cache: Path | None = None) -> Self:
        """Make a model that is ready to be fine-tuned on a log.

        Args:
            config: Configuration of the run.
            log: Training events.
            cache: Folder that keeps the text vectors of the items for later runs; default: none.

        Raises:
            TemplateError, ModelError, AssetError, SchemaError, OutputError: see the parts.
            ConfigError: There are no labels for the feedback head, or an option does not fit the
                backbone.
        """
        model = cls(build_parts(config, log, cache=cache))
        model.protocol = {"exclude_seen": config.evaluation.exclude_seen}
        check_causality(model)
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> InfluenceModel:
        """Load a model or an `Ensemble`, ready to predict (eval mode, float32).

        Args:
            source: Local folder, or the name of a model on the Hugging Face Hub, "org/name".
            revision: Branch, tag or commit on the hub; default: the main branch.

        Raises:
            ModelFolderError: There is neither such a folder nor such a model on the hub, or a file,
                head or adapter key is missing or does not fit.
        """
        folder = find_folder(source, revision)
        if (folder / ENSEMBLE).exists():
            return InfluenceModel.ensemble(*read_ensemble(folder))
        return InfluenceModel(load_parts(folder)).eval()

    @staticmethod
    def ensemble(
        models: Sequence[InfluenceModel | str | Path], weights: Sequence[float] | None = None
    ) -> Ensemble:
        """The average of several models as one model; see `Ensemble`.

        Args:
            models: Models or their folders, with equal catalogues, behaviours and heads. Backbones
                and templates may differ.
            weights: Weight of each model, with a sum of 1; default: equal weights.

        Raises:
            ModelError: The models do not fit each other, or the weights are not valid.
            ModelFolderError: A folder holds no model.
        """
        opened = [
            model if isinstance(model, InfluenceModel) else InfluenceModel.from_pretrained(model)
            for model in models
        ]
        return Ensemble(opened, weights)

    def save_pretrained(self, folder: str | Path, *, with_backbone: bool = True) -> None:
        """Write the model as one folder of safetensors, Parquet and JSON, with a model card.

        Args:
            folder: The folder; it is created if needed.
            with_backbone: Also write the backbone, so that the folder is complete. A backbone that
                was tuned itself (``full``) is always written.

        Raises:
            OutputError: The folder cannot be written.
        """
        save_parts(self.parts, Path(folder), with_backbone=with_backbone)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Upload the model with its backbone and card to the Hugging Face Hub.

        Args:
            repo_id: Name of the repository, "org/name"; it is created if needed.
            private: Create a private repository.
            revision: Branch to write to; it is created if needed. Default: the main branch.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.

        Raises:
            OutputError: The hub refuses the upload or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(
                Path(folder),
                repo_id,
                private=private,
                revision=revision,
                commit_message=commit_message,
            )

    @property
    def parts(self) -> Parts:
        """The parts of the model, as `modeling.saving` reads and writes them."""
        heads = Heads(self.item_head, self.behavior_head, self.feedback_head, self.when)
        network = (self.backbone, self.adapter, self.encoder, self.embeddings, heads, self.config)
        return Parts(*network, self.facts, self.protocol, self.rules)

    @property
    def catalogue(self) -> Catalogue:
        """The items that the model can recommend."""
        return self.encoder.vocabulary.catalogue

    def add_items(self, items: Catalogue) -> None:
        """Add items by their texts; they can then be recommended and occur in histories.

        With ``item_head.neighbors`` their vectors are mixed with those of the known items that
        share entities with them, if `facts` contains the new items.

        Raises:
            DuplicateError: An item id is already known.
            ModelError: The backbone itself was tuned (``full``): new texts need the untuned one.
        """
        expected = "a Catalogue: Catalogue.from_table(read_table(...))"
        check_type(DataError, "items", items, Catalogue, expected=expected)
        vocabulary = self.encoder.vocabulary.with_catalogue(self.catalogue.extend(items))
        with inference(self), self.adapter.off():
            texts = text_vectors(self.backbone, list(items.texts))
        neighbors = self.config.item_head.neighbors
        bags: tuple[Tensor, ...] = ()
        if self.facts is not None and neighbors.share_of_new:
            bags = item_bags(
                self.facts,
                items.ids,
                count=neighbors.count,
                share=neighbors.share_of_new,
                first=len(self.embeddings),
                first_item=self.first_item,
                known=self.catalogue.ids,
            )
        self.embeddings.extend(texts, *bags)
        texts = self.embeddings.words[self.first_item :]
        if self.item_head.memory is not None:
            self.item_head.memory.extend(nearest_items(texts, len(items)))
        if self.candidates is not None:
            self.candidates.extend(nearest_items(texts, len(items)))
        self.encoder = self.encoder.with_vocabulary(vocabulary)
        self.rules = self.rules  # bound to the longer catalogue

    # --- rules ----------------------------------------------------------------------------

    @property
    def rules(self) -> list[Rule]:
        """Rules of the recommendations and of their evaluation; saved with the model.

        Set them to what `config.load_rules` returns, before training or after.

        Raises:
            ConfigError: The model lacks a field of a rule; names the rule and the field.
        """
        return [] if self.rule_book is None else self.rule_book.rules

    @rules.setter
    def rules(self, rules: Sequence[Rule]) -> None:
        book = RuleBook(rules, self.encoder.vocabulary, self.facts) if rules else None
        self.rule_book = book

    def rule_scores(self, histories: Sequence[History]) -> Tensor | None:
        """(B, I) numbers that the rules add to the scores after B histories; None without rules.

        Excluded items have -inf.
        """
        if self.rule_book is None:
            return None
        return torch.from_numpy(self.rule_book.changes(histories)).to(self.device)

    def rule_changes(
        self, history: History, k: int = 10, *, exclude_seen: bool | None = None
    ) -> list[RuleChange]:
        """Changes by the rules among the ``k`` recommendations, with and without them.

        Args:
            history: History of any user.
            k: Number of recommendations.
            exclude_seen: Leave out items of the history. Default: `exclude_seen` of the model.
        """
        if self.rule_book is None:
            return []
        return rule_changes(
            self.score([history]),
            history,
            k,
            vocabulary=self.encoder.vocabulary,
            rules=self.rule_book,
            exclude_seen=self.exclude_seen if exclude_seen is None else exclude_seen,
        )

    # --- predictions ----------------------------------------------------------------------

    def read(self, histories: Sequence[History]) -> QueryState:
        """(B,) input of the heads after B histories."""
        return self.query(collate(self.encoder.encode(histories)).to(self.device))

    def behavior_logits(self, query: QueryState) -> Tensor:
        """(B, behaviours) logits of the behaviours."""
        return self.behavior_head(query.hidden)

    def expected_feedback(
        self, query: QueryState, items: Tensor, behaviors: Tensor
    ) -> Tensor | None:
        """(B,) labels expected on candidates; None for a binary label. As in `feedback`."""
        return self.trained_feedback.link.expected(self.feedback_scores(query, items, behaviors))

    def training_logits(
        self, batch: EncodedBatch, places: Tensor, known: Tensor, gaps: Tensor | None
    ) -> Tensor:
        """(N, I) logits of the language model, without memory, at the places of a training batch.

        Args:
            batch: B histories.
            places: (B, L) last tokens of events.
            known: (B, L) bool, True at the N places that are read.
            gaps: (N,) gap codes to the query time; None: heads do not read them.
        """
        query = self.query_at(batch, places)[known]
        query = query if gaps is None else self.at_time(query, gaps)
        return self.item_head.language_logits(query, self.item_vectors())

    def predict(
        self, histories: Sequence[History], batch_size: int = 64
    ) -> Iterator[tuple[slice, Prediction]]:
        """Predictions of histories in batches, in order, each with the rows that it covers."""
        for start in range(0, len(histories), batch_size):
            part = histories[start : start + batch_size]
            with inference(self):  # not around the yield, where it would affect the caller
                prediction = self.heads(self.read(part))
            yield slice(start, start + len(part)), prediction

    @property
    def exclude_seen(self) -> bool:
        """Whether items of a history are no candidates; ``evaluation.exclude_seen`` of its run.

        Recommendations, explanations, studies and reports follow it, as the evaluation does.
        """
        return bool(self.protocol.get("exclude_seen", True))

    def score(self, histories: Sequence[History]) -> ItemScores:
        """Logits of all items after B histories, under the `rules`, a chunk of items at a time."""
        with inference(self):
            scores = self.item_scores(self.read(histories))
        changes = self.rule_scores(histories)
        return scores if changes is None else scores.under(changes)

    def recommend(
        self,
        history: History,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The k items most likely to come next, best first; ties go to the earlier catalogue row.

        Args:
            history: History of any user, in the training log or not; may be empty.
            k: Number of items; fewer are returned if there are fewer candidates.
            exclude_seen: Leave out items of the history. Default: `exclude_seen` of the model.
            candidates: Item ids to choose from; default: the whole catalogue.

        Raises:
            UnknownNameError: The model lacks an item or behaviour of the history, or a candidate.
            ExplanationError: ``k`` is below one.
        """
        scores = self.score([history])
        return self.choose(scores, history, k, exclude_seen=exclude_seen, candidates=candidates)

    def choose(
        self,
        scores: ItemScores,
        history: History,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """`recommend` from known ``scores`` of one ``history``."""
        return best_items(
            scores,
            history,
            k,
            vocabulary=self.encoder.vocabulary,
            rules=self.rule_book,
            exclude_seen=self.exclude_seen if exclude_seen is None else exclude_seen,
            candidates=candidates,
        )

    def session(self, history: History, *, keep: int | None = None) -> Session:
        """Follow one user event by event, without reading earlier events again; see `Session`."""
        return Session(self, history, keep=keep)

    def gates(self, history: History) -> Tensor:
        """(E, H) gates of a history's events: the share of the state that each event retains.

        The history is first cut to the events that fit the context.

        Raises:
            ModelError: The backbone is not ``recurrence``.
        """
        batch = collate(self.encoder.encode([self.encoder.trim(history)])).to(self.device)
        return self.event_gates(batch)[0].cpu()


class Ensemble(Averaged, InfluenceModel):
    """Several models as one: it recommends, is evaluated, explained and saved like a model.

    Log-probabilities of items and behaviours are averaged with the weights and normalised; of
    feedback the log-odds are averaged. An `Explainer` explains the weighted sum of the members' own
    values of the target: their log-odds, or their differences of two logits. An event's influence
    is the weighted sum of its influences in the members, which is exact for this value. Rules, and
    the facts that they read, are those of the first member.

    Args:
        members: The M models; they are shared, not copied.
        weights: Their weights, with a sum of 1; default: equal weights.

    Attributes:
        members: The models.
        weights: Their weights.

    Raises:
        ModelError: The models do not fit each other, or the weights are not valid.
    """

    def __init__(
        self, members: Sequence[InfluenceModel], weights: Sequence[float] | None = None
    ) -> None:
        check_members(members)
        chosen = checked_weights(weights, len(members))
        super().__init__(members[0].parts)
        self.members, self.weights = nn.ModuleList(members), chosen
        self.protocol = {k: v for k, v in self.protocol.items() if k != "metrics"}
        self.eval()

    @property
    def models(self) -> list[InfluenceModel]:
        """The members as models."""
        return cast(list[InfluenceModel], list(self.members))

    def add_items(self, items: Catalogue) -> None:
        """Add items to every member, see `InfluenceModel.add_items`."""
        for member in self._networks:
            member.add_items(items)
        self.encoder = self._networks[0].encoder
        self.rules = self.rules
