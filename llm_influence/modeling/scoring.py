"""Scores of the whole catalogue, a chunk of items at a time, and recommendations from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import ExplanationError, ModelError, check_type
from llm_influence.rendering.vocabulary import Vocabulary
from llm_influence.rules.rule_book import EXCLUDED, RuleBook, RuleChange
from llm_influence.types import History

MAX_LOG_ODDS = 1e4
"""Bound on log-odds, far above those of any finite scores."""


@dataclass(frozen=True, slots=True, eq=False)
class BestItems:
    """The K best items of each of B rows, best first; ties go to the earlier item.

    Attributes:
        codes: (B, K) item codes.
        candidate: (B, K) bool, False at the end of rows with fewer than K candidates.
        log_odds: (B, K) log-odds of each item against all others of the catalogue.
    """

    codes: Tensor
    candidate: Tensor
    log_odds: Tensor

    def shown(self) -> Tensor:
        """(B, K) codes of the candidates, -1 in the other places."""
        return self.codes.masked_fill(~self.candidate, -1)


class ItemScores:
    """(B, I) scores of which only one chunk of items is in memory at a time.

    Args:
        items: Number of items I.
        score: Function that gives the (B, C) scores of items ``start`` to ``stop``.
        chunk: Items per chunk; default: `ItemScores.chunk`.
        changes: See `under`.
    """

    chunk = 32_768
    """Items per chunk; affects only memory and speed."""

    def __init__(
        self,
        items: int,
        score: Callable[[int, int], Tensor],
        chunk: int | None = None,
        changes: Tensor | None = None,
    ) -> None:
        self.items, self._score, self._size = items, score, chunk or self.chunk
        self._changes = changes
        self._latest: tuple[int, Tensor] | None = None

    @classmethod
    def of(cls, scores: Tensor, chunk: int | None = None) -> ItemScores:
        """Wrap known (B, I) scores."""
        return cls(scores.shape[1], lambda start, stop: scores[:, start:stop], chunk)

    @classmethod
    def mixed(cls, members: Sequence[ItemScores], weights: Sequence[float]) -> ItemScores:
        """Weighted sums of the scores of several models, without their rules."""

        def score(start: int, stop: int) -> Tensor:
            pairs = zip(weights, members, strict=True)
            return torch.stack([w * one._score(start, stop) for w, one in pairs]).sum(dim=0)

        return cls(members[0].items, score)

    def under(self, changes: Tensor) -> ItemScores:
        """The same scores, ordered by rules.

        Ranks and best items follow the changed scores; log-odds stay those of the model.

        Args:
            changes: (B, I) added to the scores, -inf for excluded items; in memory as a whole.
        """
        return ItemScores(self.items, self._score, self._size, changes)

    def excluded(self, targets: Tensor) -> Tensor:
        """(B,) bool, True for the (B,) item codes that the rules exclude."""
        if self._changes is None:
            return torch.zeros(len(targets), dtype=torch.bool)
        rows = torch.arange(len(targets), device=self._changes.device)
        return self._changes[rows, targets.to(rows.device)].isneginf().cpu()

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The first item of each chunk and its (B, C) changed scores."""
        for start in range(0, self.items, self._size):
            yield start, self._changed(start)

    def at(self, codes: Tensor) -> Tensor:
        """(B,) score of the (B,) item codes, one for each row.

        The scores come from whole chunks: a product of another shape may differ in the last bit,
        and an item would be ranked before itself.
        """
        own = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        starts = codes // self._size * self._size
        for start in starts.unique().tolist():
            rows = (starts == start).nonzero()[:, 0]
            values = self._changed(start)
            chosen = values[rows.to(values.device), (codes[rows] - start).to(values.device)]
            own[rows] = chosen.to(own)
        return own

    def ranks(self, targets: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B,) rank of each target among the candidates, from 1, if it is a candidate or not.

        Args:
            targets: (B,) item codes.
            seen: (B, S) codes of items that are not candidates, -1 in unused places.

        Raises:
            ModelError: The score of a target is NaN, which would give it rank 1.
        """
        own, ranks = self.at(targets)[:, None], torch.ones(len(targets), dtype=torch.int64)
        if own.isnan().any():
            raise ModelError(
                "the scores of items are not numbers",
                where="ranking",
                expected="a model whose weights are finite",
                fix="train with lower learning rates, or with train.precision fp32",
            )
        for start, values in self.chunks():
            own, targets = own.to(values), targets.to(values.device)
            codes = torch.arange(start, start + values.shape[1], device=values.device)
            before = (values > own) | ((values == own) & (codes < targets[:, None]))
            ranks += _without(before, start, seen).sum(dim=1).cpu()
        return ranks

    def best(
        self, k: int, *, seen: Tensor | None = None, allowed: Tensor | None = None
    ) -> BestItems:
        """The ``k`` best candidates of every row, or all I items of a smaller catalogue.

        Args:
            k: Number of items.
            seen: (B, S) codes of items that are not candidates, -1 in unused places.
            allowed: (I,) bool, items that may be candidates; default: all.
        """
        best: list[Tensor] = []
        rest: list[Tensor] = []
        for start, order in self.chunks():
            values = self._chunk(start)
            codes = torch.arange(start, start + values.shape[1]).expand(len(values), -1)
            free = torch.ones(values.shape, dtype=torch.bool, device=values.device)
            if allowed is not None:
                free &= allowed[start : start + values.shape[1]].to(values.device)
            free = _without(free & ~order.isneginf(), start, seen)
            new = (codes.to(values.device), free, values.double(), order.double())
            pairs = zip(best, new, strict=True) if best else zip(new, strict=True)
            best, dropped = _cut([torch.cat(pair, dim=1) for pair in pairs], k)
            rest = [torch.cat([*rest, dropped], dim=1).logsumexp(dim=1, keepdim=True)]
        codes, free, scores, _ = best
        return BestItems(codes, free, _odds(scores, rest[0]))

    def _changed(self, start: int) -> Tensor:
        values = self._chunk(start)
        if self._changes is None:
            return values
        return values + self._changes[:, start : start + values.shape[1]].to(values)

    def _chunk(self, start: int) -> Tensor:
        """Scores of one chunk; the latest is kept, so a small catalogue is scored once."""
        if self._latest is None or self._latest[0] != start:
            with torch.no_grad():
                values = self._score(start, min(start + self._size, self.items))
            self._latest = (start, values)
        return self._latest[1]


def _without(free: Tensor, start: int, seen: Tensor | None) -> Tensor:
    """(B, C) bool ``free`` of items from ``start`` on, set to False for seen items."""
    if seen is not None:
        inside = (seen >= start) & (seen < start + free.shape[1])
        rows, places = inside.nonzero(as_tuple=True)
        free[rows.to(free.device), (seen[rows, places] - start).to(free.device)] = False
    return free


def _cut(columns: Sequence[Tensor], k: int) -> tuple[list[Tensor], Tensor]:
    """The k best rows of (codes, candidate, scores, order), and the scores of the others."""
    _, free, scores, order = columns
    ranked = order.masked_fill(~free, -torch.inf).sort(dim=1, descending=True, stable=True)
    best, others = ranked.indices[:, :k], ranked.indices[:, k:]
    return [column.gather(1, best) for column in columns], scores.gather(1, others)


def _odds(scores: Tensor, rest: Tensor) -> Tensor:
    """(B, K) log-odds from (B, K) scores and the (B, 1) logsumexp of all other items.

    The items other than one are those before it, those after it and the rest. Subtracting from a
    total would lose all digits when one item has nearly all of the probability.
    """
    nothing = torch.full_like(scores[:, :1], -torch.inf)
    before = torch.cat([nothing, scores.logcumsumexp(dim=1)[:, :-1]], dim=1)
    after = torch.cat([nothing, scores.flip(1).logcumsumexp(dim=1)[:, :-1]], dim=1).flip(1)
    others = torch.logaddexp(torch.logaddexp(before, after), rest)
    return (scores - others).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


def log_odds(logits: Tensor, codes: Tensor) -> Tensor:
    """(B,) log-odds of one class against all others, from (B, C) logits and (B,) codes.

    ``log p / (1 - p) = logit - logsumexp(other logits)`` is exact for p near 0 and near 1.
    """
    chosen = logits.gather(1, codes[:, None])
    others = logits.scatter(1, codes[:, None], -torch.inf)
    return (chosen[:, 0] - others.logsumexp(dim=1)).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: Item id.
        title: Title of the item; the id for an item without title.
        log_odds: Log-odds of the item against all others of the catalogue.
        probability: Probability that the item comes next.
        rules: Names of the rules that changed its rank; log-odds and probability are unchanged.
    """

    item: str
    title: str
    log_odds: float
    probability: float
    rules: tuple[str, ...] = ()


def best_items(
    scores: ItemScores,
    history: History,
    k: int,
    *,
    vocabulary: Vocabulary,
    rules: RuleBook | None = None,
    exclude_seen: bool = True,
    candidates: Sequence[str] | None = None,
) -> list[Recommendation]:
    """The k items with the best scores, best first; ties go to the earlier catalogue row.

    Args:
        scores: Scores of one history, with the changes by rules.
        history: That history.
        k: Number of items; fewer are returned if there are fewer candidates.
        vocabulary: Vocabulary with the items.
        rules: Rules whose names are reported; default: none.
        exclude_seen: Leave out items of the history.
        candidates: Item ids to choose from; default: the whole catalogue.

    Raises:
        UnknownNameError: The vocabulary lacks an item of the history or a candidate.
        ExplanationError: ``k`` is below one.
    """
    check_type(ExplanationError, "k", k, Integral, expected="a whole number of items")
    if k < 1:
        raise ExplanationError(
            f"k is {k}", where="recommend", expected="at least 1", fix="ask for one item"
        )
    catalogue, allowed = vocabulary.catalogue, None
    if candidates is not None:
        allowed = torch.zeros(len(catalogue), dtype=torch.bool)
        allowed[torch.from_numpy(catalogue.index(candidates).astype(np.int64))] = True
    seen = _seen(vocabulary, history) if exclude_seen else None
    best = scores.best(k, seen=seen, allowed=allowed)
    effects = [] if rules is None else list(rules.effects(history))
    recommendations = []
    columns = (best.codes[0], best.candidate[0], best.log_odds[0])
    for code, candidate, odds in zip(*(c.tolist() for c in columns), strict=True):
        if candidate:
            item, title = _named(catalogue, code)
            probability = float(torch.sigmoid(torch.tensor(odds, dtype=torch.float64)))
            names = tuple(effect.rule for effect in effects if effect.items[code])
            recommendations.append(Recommendation(item, title, odds, probability, names))
    return recommendations


def rule_changes(
    scores: ItemScores,
    history: History,
    k: int,
    *,
    vocabulary: Vocabulary,
    rules: RuleBook,
    exclude_seen: bool = True,
) -> list[RuleChange]:
    """Changes by the rules among the ``k`` best items, with and without them.

    Args:
        scores: Scores of one history, with the changes by rules.
        history: That history.
        k: Number of recommendations.
        vocabulary: Vocabulary with the items.
        rules: The rules.
        exclude_seen: Leave out items of the history.
    """
    free = scores.under(torch.zeros(1, scores.items))
    seen = _seen(vocabulary, history) if exclude_seen else None
    lists = [column.best(k, seen=seen).shown()[0].tolist() for column in (free, scores)]
    shown = [code for code in dict.fromkeys(lists[0] + lists[1]) if code >= 0]

    def ranks(column: ItemScores) -> list[int]:
        return [int(column.ranks(torch.tensor([code]), seen)[0]) for code in shown]

    changes = []
    before, after = ranks(free), ranks(scores)
    for effect in rules.effects(history):
        for place, code in enumerate(shown):
            if effect.items[code]:
                excluded = bool(scores.excluded(torch.tensor([code]))[0])
                change = RuleChange(
                    effect.rule,
                    *_named(vocabulary.catalogue, code),
                    boost=None if effect.change == EXCLUDED else effect.change,
                    before=before[place],
                    after=None if excluded else after[place],
                )
                changes.append(change)
    return changes


def _seen(vocabulary: Vocabulary, history: History) -> Tensor:
    """(1, E) item codes of a history."""
    return torch.from_numpy(vocabulary.item_codes(history).astype(np.int64))[None]


def _named(catalogue: Catalogue, code: int) -> tuple[str, str]:
    """Id and title of an item."""
    item = catalogue.ids[code].as_py()
    return item, catalogue.titles[code] or item
