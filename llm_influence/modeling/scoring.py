"""Scores of a whole catalogue, a chunk of items at a time: memory does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_influence.errors import ModelError

SURE = 1e4
"""Log-odds of what is certain: beyond any that finite scores give."""


@dataclass(frozen=True, slots=True, eq=False)
class BestItems:
    """The K best items of each of B rows, best first; equal scores go to the earlier item.

    Attributes:
        codes: (B, K) item codes.
        candidate: (B, K) bool, False where a row has fewer than K candidates.
        log_odds: (B, K) of each item against all others of the catalogue, candidates or not.
    """

    codes: Tensor
    candidate: Tensor
    log_odds: Tensor

    def shown(self) -> Tensor:
        """(B, K) codes of the candidates alone, -1 in the places of what is none."""
        return self.codes.masked_fill(~self.candidate, -1)


class ItemScores:
    """(B, I) scores that never stand in memory together.

    Args:
        items: Number of items I.
        score: Gives the (B, C) scores of items ``start`` to ``stop``; carries no gradient.
        chunk: Items scored at a time; default: `ItemScores.chunk`.
        changes: See `under`.
    """

    chunk = 32_768
    """Affects memory and speed alone. A smaller catalogue is scored in one piece."""

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
        """(B, I) scores that are there already."""
        return cls(scores.shape[1], lambda start, stop: scores[:, start:stop], chunk)

    def under(self, changes: Tensor) -> ItemScores:
        """The same, ordered as rules want it.

        Ranks and the best items follow the changed scores; log-odds stay those of the model.

        Args:
            changes: (B, I) added to the scores, -inf for items that are no candidates. Unlike the
                scores themselves, it stands whole.
        """
        return ItemScores(self.items, self._score, self._size, changes)

    def excluded(self, targets: Tensor) -> Tensor:
        """(B,) bool, which of the (B,) item codes are no candidates by what was changed."""
        if self._changes is None:
            return torch.zeros(len(targets), dtype=torch.bool)
        rows = torch.arange(len(targets), device=self._changes.device)
        return self._changes[rows, targets.to(rows.device)].isneginf().cpu()

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """The first item of each chunk and its (B, C) scores, changed."""
        for start in range(0, self.items, self._size):
            yield start, self._changed(start)

    def at(self, codes: Tensor) -> Tensor:
        """(B,) each row's score of its own one of the (B,) items.

        It is read from the same chunks that everything else is: a product of another shape may
        differ in its last bit, and an item would then stand before itself.
        """
        own = torch.zeros(len(codes), dtype=torch.float64, device=codes.device)
        starts = codes // self._size * self._size
        for start in starts.unique().tolist():
            rows = (starts == start).nonzero()[:, 0]
            values = self._changed(start)
            found = values[rows.to(values.device), (codes[rows] - start).to(values.device)]
            own[rows] = found.to(own)
        return own

    def ranks(self, targets: Tensor, seen: Tensor | None = None) -> Tensor:
        """(B,) place of each target among the candidates, from 1, whether it is one or not.

        Args:
            targets: (B,) item codes.
            seen: (B, S) codes of items that are no candidates, -1 where a row has fewer.

        Raises:
            ModelError: A target's score is no number: it would be above and below nothing, and a
                model that has diverged would rank everything first.
        """
        own, ranks = self.at(targets)[:, None], torch.ones(len(targets), dtype=torch.int64)
        if own.isnan().any():
            raise _no_number()
        for start, values in self.chunks():
            own, targets = own.to(values), targets.to(values.device)
            codes = torch.arange(start, start + values.shape[1], device=values.device)
            before = (values > own) | ((values == own) & (codes < targets[:, None]))
            ranks += _without(before, start, seen).sum(dim=1).cpu()
        return ranks

    def best(
        self, k: int, *, seen: Tensor | None = None, allowed: Tensor | None = None
    ) -> BestItems:
        """The ``k`` best candidates of every row, or I where the catalogue is smaller.

        Args:
            k: How many.
            seen: (B, S) codes of items that are no candidates, -1 where a row has fewer.
            allowed: (I,) bool, the items that may be candidates; default: all.
        """
        found: list[Tensor] = []
        rest: list[Tensor] = []
        for start, order in self.chunks():
            values = self._chunk(start)
            codes = torch.arange(start, start + values.shape[1]).expand(len(values), -1)
            free = torch.ones(values.shape, dtype=torch.bool, device=values.device)
            if allowed is not None:
                free &= allowed[start : start + values.shape[1]].to(values.device)
            free = _without(free & ~order.isneginf(), start, seen)
            new = (codes.to(values.device), free, values.double(), order.double())
            pairs = zip(found, new, strict=True) if found else zip(new, strict=True)
            found, dropped = _cut([torch.cat(pair, dim=1) for pair in pairs], k)
            rest = [torch.cat([*rest, dropped], dim=1).logsumexp(dim=1, keepdim=True)]
        codes, free, scores, _ = found
        return BestItems(codes, free, _odds(scores, rest[0]))

    def _changed(self, start: int) -> Tensor:
        values = self._chunk(start)
        if self._changes is None:
            return values
        return values + self._changes[:, start : start + values.shape[1]].to(values)

    def _chunk(self, start: int) -> Tensor:
        """Scores of one chunk; the latest one is kept, so a small catalogue is scored once."""
        if self._latest is None or self._latest[0] != start:
            with torch.no_grad():
                values = self._score(start, min(start + self._size, self.items))
            self._latest = (start, values)
        return self._latest[1]


def _without(free: Tensor, start: int, seen: Tensor | None) -> Tensor:
    """(B, C) bool ``free`` of items from ``start`` on, False at those a row has seen."""
    if seen is not None:
        inside = (seen >= start) & (seen < start + free.shape[1])
        rows, places = inside.nonzero(as_tuple=True)
        free[rows.to(free.device), (seen[rows, places] - start).to(free.device)] = False
    return free


def _cut(found: Sequence[Tensor], k: int) -> tuple[list[Tensor], Tensor]:
    """The k best of (codes, candidate, scores, order), and the (B, ...) scores of the others."""
    _, free, scores, order = found
    ranked = order.masked_fill(~free, -torch.inf).sort(dim=1, descending=True, stable=True)
    best, others = ranked.indices[:, :k], ranked.indices[:, k:]
    return [column.gather(1, best) for column in found], scores.gather(1, others)


def _odds(scores: Tensor, rest: Tensor) -> Tensor:
    """(B, K) log-odds from (B, K) scores and the (B, 1) logsumexp of all items beside them.

    The others of an item are those before it, those after it and the rest; nothing is taken away
    from a sum, which would lose everything where one item has nearly all of the probability.
    """
    nothing = torch.full_like(scores[:, :1], -torch.inf)
    before = torch.cat([nothing, scores.logcumsumexp(dim=1)[:, :-1]], dim=1)
    after = torch.cat([nothing, scores.flip(1).logcumsumexp(dim=1)[:, :-1]], dim=1).flip(1)
    others = torch.logaddexp(torch.logaddexp(before, after), rest)
    return (scores - others).clamp(-SURE, SURE)


def _no_number() -> ModelError:
    return ModelError(
        "the scores of items are not numbers",
        where="ranking",
        expected="a model whose weights are finite",
        fix="train with lower learning rates, or with train.precision fp32",
    )


def log_odds(logits: Tensor, codes: Tensor) -> Tensor:
    """(B,) log-odds of one class a row against all others, from (B, C) logits and (B,) codes.

    ``log p / (1 - p) = logit - logsumexp(other logits)``, which stays exact for p near 0 and 1.
    """
    chosen = logits.gather(1, codes[:, None])
    others = logits.scatter(1, codes[:, None], -torch.inf)
    return (chosen[:, 0] - others.logsumexp(dim=1)).clamp(-SURE, SURE)
