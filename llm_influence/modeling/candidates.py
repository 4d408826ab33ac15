"""Candidate features of the feedback head: counts and means of labels by user, by item and by both.

Let y be the label of an event, and m(i) the smoothed mean label of item i in the training data. The
residual ``r = y - m(item)`` is how much higher a user's label is than those of others.

    item    log(1 + number of labels) of the candidate, and m of it
    user    log(1 + number of events with a label), smoothed means of r and of r^2 over the history,
            means of r with half-lives
    both    the residual that a ridge regression of the user's residuals on item vectors predicts
            for the candidate, the mean of r weighted by the similarity of texts, number and mean
            on the same item; for each behaviour, the number of events on the same item and on
            similar items

The item vectors are the right singular vectors of the residuals of users and items. This is user
bias, item bias and a neighbourhood model of residuals (Koren 2008, doi:10.1145/1401890.1401944).

Every event has a weight: 0 if it is hidden or replaced, 1 if it is there, and along a path of input
vectors the share that is present. So a feature changes exactly with its events.

The mean of an item must not contain a label that it helps to predict, and a mean that leaves out
this label alone gives it away. So users are divided into folds by their names, and training reads
tables of the other folds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from zlib import crc32

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn import functional as F

from llm_influence.config.model import FeedbackHeadConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.counts import QueryState
from llm_influence.rendering.encoder import NO_ITEM, EncodedBatch, Encoder
from llm_influence.rendering.template import FIELDS
from llm_influence.types import BoolArray, FloatArray, IntArray

FOLDS = 5
"""Number of folds of users; table number `FOLDS` is that of all users."""
PRIOR = 5.0
"""Number of mean labels that are added to the labels of an item or user."""
HALF_LIVES = (3.0, 15.0)
"""Half-lives of the recent means, in events."""
TASTES, ITEM_SHRINKAGE, RIDGE = 8, 200.0, 1.0
"""Size of the item vectors, labels that shrink the vector of an item, penalty of the regression."""
DIRECTIONS, SHARPNESS = 32, 4.0
"""Directions of the text vectors that are compared; similarity is exp(sharpness (cosine - 1))."""
SIMILAR_PRIOR = 0.3
"""Similar events without residual that are added to those of a user."""


def user_folds(user_ids: Iterable[str]) -> IntArray:
    """(U,) folds of users; the same name has the same fold in every log."""
    return np.array([crc32(str(name).encode()) % FOLDS for name in user_ids], dtype=np.int64)


class CandidateFeatures(nn.Module):
    """Features of a history and a candidate; see the module docstring for the list.

    Labels of past events are used where the template renders the value and the label is the value.
    Otherwise the features of residuals are left out. `feedback_fit` fits tables and scale.

    Args:
        encoder: Encoder of the histories.
        config: Options of the feedback head.

    Attributes:
        tables: (FOLDS + 1, I, 2) number of labels and smoothed mean label of each item.
        tastes: (FOLDS + 1, I, D) vectors of the items for the regression.
        texts: (I, D) unit vectors of the items' texts, whitened.
        labels: (V, 2) mean label of each value bin, and whether the bin has labels.
        base: Mean label.
    """

    tables: Tensor
    tastes: Tensor
    texts: Tensor
    labels: Tensor
    base: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: Encoder, config: FeedbackHeadConfig) -> None:
        super().__init__()
        vocabulary, fields = encoder.vocabulary, encoder.template.fields
        items = len(vocabulary.catalogue)
        self._added, self._values = tuple(encoder.template.added), vocabulary.values
        self._behaviors = len(vocabulary.behaviors) if "behavior" in fields else 1
        self._labelled = [
            code for code, name in enumerate(vocabulary.behaviors) if name in config.behaviors
        ]
        self.reads_labels = (
            config.label == "value"
            and "value" in fields
            and (not self._labelled or "behavior" in fields)
        )
        self.size = 2 + 2 * self._behaviors + self.reads_labels * (7 + len(HALF_LIVES))
        shapes = {
            "tables": (FOLDS + 1, items, 2),
            "tastes": (FOLDS + 1, items, TASTES),
            "texts": (items, DIRECTIONS),
            "labels": (len(vocabulary.values.edges) + 1, 2),
            "base": (),
            "mean": (self.size,),
            "deviation": (self.size,),
        }
        for name, shape in shapes.items():
            fill = torch.ones if name == "deviation" else torch.zeros
            self.register_buffer(name, fill(shape))

    # --- events and features --------------------------------------------------------------

    def beside(
        self,
        query: QueryState,
        batch: EncodedBatch,
        records: Tensor,
        presence: Tensor,
        folds: Tensor | None = None,
    ) -> QueryState:
        """The (B, L) query with the events that the features read.

        Args:
            query: The input of the heads.
            batch: B histories of T tokens.
            records: (B, L, E, 5) records of the events before each place.
            presence: (B, T) weight of each token, 0 for those that are not counted.
            folds: (B,) folds that the tables leave out; default: none.
        """
        folds = torch.full_like(batch.num_events, FOLDS) if folds is None else folds
        events = self.events(records, self.shares(batch, presence), folds)
        return replace(query, events=events, folds=folds[:, None].expand(events.shape[:2]))

    def shares(self, batch: EncodedBatch, presence: Tensor) -> Tensor:
        """(B, E, 3) share of item, behaviour and value of each event that is present.

        Args:
            batch: B histories of T tokens.
            presence: (B, T) weight of each token, 0 for those that are not counted.
        """
        item, text, behavior, value = (
            self._share(field, batch, presence) for field in ("item", "text", "behavior", "value")
        )
        behavior = behavior if self._behaviors > 1 else torch.ones_like(item)
        return torch.stack([torch.maximum(item, text), behavior, value], dim=-1)

    def _share(self, field: str, batch: EncodedBatch, presence: Tensor) -> Tensor:
        """(B, E) share of a field of each event that is present; 0 without the field."""
        if field in self._added:
            here = batch.added_ids[..., self._added.index(field)] >= 0
            return batch.event_sums(presence * here)[0]
        here = (batch.field_index == FIELDS.index(field)) & (batch.event_index >= 0)
        ones = here.to(presence)
        return batch.event_sums(presence * ones)[0] / batch.event_sums(ones)[0].clamp(min=1)

    def events(self, records: Tensor, shares: Tensor, folds: Tensor) -> Tensor:
        """(B, L, E, 6) what the features read of the events before each place.

        The columns are item code, behaviour code, distance, share of the event that is present,
        the same where its label can be read, residual of the label.

        Args:
            records: (B, L, E, 5) records (`encoder.RECORD`), item `NO_ITEM` for no event.
            shares: (B, E, 3), see `shares`.
            folds: (B,) number of the table.
        """
        shares = shares[:, None]
        exists = (records[..., 0] != NO_ITEM).float()
        item, behavior, value, _, distance = records.clamp(min=0).unbind(dim=-1)
        behavior = behavior if self._behaviors > 1 else torch.zeros_like(behavior)
        label, known = self.labels[value].unbind(dim=-1)
        if self._labelled:
            codes = torch.tensor(self._labelled, device=behavior.device)
            known = known * torch.isin(behavior, codes) * shares[..., 1]
        residual = label - self.tables[folds[:, None, None], item, 1]
        there = exists * shares[..., 0]
        columns = [item, behavior, distance, there * shares[..., 1]]
        columns += [there * shares[..., 2] * known, residual]
        return torch.stack([column.float() for column in columns], dim=-1)

    def forward(self, events: Tensor, folds: Tensor, items: Tensor) -> Tensor:
        """(N, F) standardised features of N candidates.

        Args:
            events: (N, E, 6) events before each candidate, see `events`.
            folds: (N,) number of the table.
            items: (N,) item codes of the candidates.
        """
        with torch.autocast(events.device.type, enabled=False):
            return (self.raw(events.float(), folds, items) - self.mean) / self.deviation

    def raw(self, events: Tensor, folds: Tensor, items: Tensor) -> Tensor:
        """The features of `forward` before they are standardised."""
        codes, kinds = events[..., 0].long(), events[..., 1].long()
        distance, present, weight, residual = events[..., 2:].unbind(dim=-1)
        count, level = self.tables[folds, items].unbind(dim=-1)
        same = (codes == items[:, None]).float()
        cosine = (self.texts[codes] @ self.texts[items][..., None])[..., 0]
        similar = (SHARPNESS * (cosine - 1)).exp()
        columns = [count.log1p(), level]
        for related in (same, similar):
            sums = related.new_zeros(len(items), self._behaviors)
            columns += sums.scatter_add(1, kinds, present * related).log1p().unbind(dim=1)
        if self.reads_labels:
            user = _mean(weight, residual, PRIOR)
            own = residual - user[:, None]
            columns += [weight.sum(dim=1).log1p(), user, _mean(weight, residual.square(), PRIOR)]
            for half_life in HALF_LIVES:
                columns.append(_mean(weight * 0.5 ** (distance / half_life), residual, 1.0))
            columns += [_mean(weight * same, own, 1.0), _mean(weight * similar, own, SIMILAR_PRIOR)]
            columns.append((weight * same).sum(dim=1).log1p())
            vectors = self.tastes[folds[:, None], codes]
            weighted = (vectors * weight[..., None]).mT
            penalty = RIDGE * torch.eye(TASTES, device=events.device)
            taste = torch.linalg.solve(
                weighted @ vectors + penalty, (weighted @ own[..., None])[..., 0]
            )
            columns.append((taste * self.tastes[folds, items]).sum(dim=1))
        return torch.stack(columns, dim=1)

    # --- fit ------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_tables(self, log: BehaviorLog, labels: FloatArray, texts: Tensor) -> None:
        """Fit tables, item vectors and labels of the value bins.

        Args:
            log: Training events.
            labels: (N,) labels of the events, NaN without one.
            texts: (I, H) vectors of the items' texts; H may be 0.
        """
        known = ~np.isnan(labels)
        self.base.fill_(float(labels[known].mean()))
        size = len(self.labels)
        bins = self._values.codes(log.values)[known]
        counts = np.bincount(bins, minlength=size)
        means = np.bincount(bins, labels[known], size) / counts.clip(1)
        has_labels = (counts > 0) & (np.arange(size) > 0)  # bin 0: no value
        self.labels.copy_(torch.from_numpy(np.stack([means, has_labels], axis=1)))
        folds = user_folds(log.user_ids.to_pylist())[log.rows_of_users()]
        for fold in range(FOLDS + 1):
            self._fit_table(fold, log, labels, known & (folds != fold))
        self.texts.copy_(_directions(texts))

    def _fit_table(self, fold: int, log: BehaviorLog, labels: FloatArray, used: BoolArray) -> None:
        """Counts, means and item vectors of the labels that are used."""
        items, users, y = log.items[used], log.rows_of_users()[used], labels[used]
        size, base = len(log.catalogue), float(self.base)
        counts = np.bincount(items, minlength=size)
        means = (np.bincount(items, y, size) + PRIOR * base) / (counts + PRIOR)
        self.tables[fold] = torch.from_numpy(np.stack([counts, means], axis=1))
        scale = 1 / np.sqrt(counts + ITEM_SHRINKAGE)
        residuals = csr_array(
            ((y - means[items]) * scale[items], (users, items)), shape=(len(log), size)
        )
        vectors = _right_vectors(residuals) * scale[:, None]
        length = np.sqrt(np.square(vectors).sum(axis=1)[items].mean()) if len(items) else 0.0
        self.tastes[fold] = torch.from_numpy(vectors / (length or 1.0))

    @torch.no_grad()
    def fit_scale(self, raw: Tensor) -> Tensor:
        """Set mean and standard deviation to those of (N, F) features; the standardised ones."""
        self.mean.copy_(raw.mean(dim=0))
        spread = raw.std(dim=0, correction=0)
        self.deviation.copy_(torch.where(spread > 1e-6, spread, 1.0))
        return (raw - self.mean) / self.deviation

    def extend(self, nearest: csr_array) -> None:
        """Add items without labels: the mean label, and vectors of the nearest known items.

        Args:
            nearest: (N, I) weights of the known items, see `nearest_items`.
        """
        new = torch.tensor(nearest.toarray(), device=self.texts.device, dtype=torch.float32)
        table = torch.stack([torch.zeros_like(self.base), self.base])
        self.tables = torch.cat([self.tables, table.expand(FOLDS + 1, len(new), 2)], dim=1)
        self.tastes = torch.cat([self.tastes, new @ self.tastes], dim=1)
        self.texts = torch.cat([self.texts, F.normalize(new @ self.texts, dim=1)])


def _mean(weights: Tensor, values: Tensor, prior: float) -> Tensor:
    """(N,) weighted means of (N, E) values, shrunk to 0 by ``prior`` zeros."""
    return (weights * values).sum(dim=1) / (weights.sum(dim=1) + prior)


def _right_vectors(matrix: csr_array) -> FloatArray:
    """(I, TASTES) first right singular vectors of a (U, I) matrix, times the singular values."""
    smallest = min(matrix.shape)
    if smallest > 4 * TASTES:
        _, values, rows = svds(matrix, k=TASTES, v0=np.ones(smallest))
    else:
        _, values, rows = np.linalg.svd(matrix.toarray(), full_matrices=False)
        values, rows = values[:TASTES], rows[:TASTES]
    vectors = np.zeros((matrix.shape[1], TASTES))
    vectors[:, : len(values)] = rows.T * values
    return vectors


def _directions(texts: Tensor) -> Tensor:
    """(I, DIRECTIONS) unit vectors in the main directions of (I, H) texts, whitened."""
    centred = (texts - texts.mean(dim=0)).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(texts))
    main = slice(-DIRECTIONS, None)
    scales = variances[main].clamp(min=1e-9 * float(variances.sum()) + 1e-12).rsqrt()
    units = F.normalize(centred @ (axes[:, main] * scales), dim=1).float()
    return F.pad(units, (0, DIRECTIONS - units.shape[1]))
