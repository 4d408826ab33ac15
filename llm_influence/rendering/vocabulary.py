"""Vocabulary of a model: integer codes and words of every field of an event.

A `Vocabulary` is fitted on the training log and saved with the model. It turns histories of any log
into columns of codes (behaviour, item, gap, value), and gives the word for each code.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import SchemaError, UnknownNameError, unknown
from llm_influence.rendering.time_words import gap_codes, hour_codes, times_codes, weekday_codes
from llm_influence.types import CodeNames, FloatArray, History, IntArray

UNKNOWN = "unknown"
"""Word for a missing value or user feature."""
MOST_DISTINCT_VALUES = 32
"""Up to so many distinct values, each has a bin of its own."""
QUANTILES = 16
"""Number of bins for more values than that."""


@dataclass(frozen=True, eq=False)
class ValueBins:
    """Bins of event values (ratings, amounts). Code 0 means "no value", code 1 + k is bin k."""

    edges: FloatArray
    """(K,) lower edges, ascending; the first bin also takes everything below it."""

    @classmethod
    def fit(cls, values: FloatArray) -> ValueBins:
        """A bin for each distinct value if there are few (ratings), else quantiles (amounts)."""
        known = values[~np.isnan(values)].astype(np.float64)
        distinct = np.unique(known)
        if len(distinct) > MOST_DISTINCT_VALUES:
            distinct = np.unique(np.quantile(known, np.arange(QUANTILES) / QUANTILES))
        return cls(distinct)

    def codes(self, values: FloatArray) -> IntArray:
        """(S,) codes of (S,) values; NaN means "no value"."""
        bins = np.searchsorted(self.edges, values, side="right").clip(1)
        return np.where(np.isnan(values), 0, bins).astype(np.int32)

    def words(self) -> list[str]:
        """Words by code; the word of code 0 is empty, so that nothing is written."""
        return ["", *(f"{edge:.4g}" for edge in self.edges)]


@dataclass(frozen=True, slots=True, eq=False)
class EventColumns:
    """Codes of all events of N histories, one after the other (S events in all)."""

    lengths: IntArray
    """(N,) number of events of each history."""
    codes: Mapping[str, IntArray]
    """(S,) codes by field (`FIELDS`); ``text`` has the item's codes."""


@dataclass(eq=False)
class Vocabulary:
    """Behaviours, value bins, user features and items of a model.

    Attributes:
        behaviors: Behaviours by code.
        values: Bins of the event values.
        features: Known values of each user feature of the template.
        catalogue: Items by code.
        counts: (I,) number of training events by item; None if it is not known.
    """

    behaviors: tuple[str, ...]
    values: ValueBins
    features: Mapping[str, tuple[str, ...]]
    catalogue: Catalogue
    counts: IntArray | None = None
    _recodings: weakref.WeakKeyDictionary[CodeNames, tuple[IntArray, IntArray]] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False
    )

    @classmethod
    def fit(cls, log: BehaviorLog, features: Sequence[str] = ()) -> Vocabulary:
        """Make the vocabulary of a training log.

        Args:
            log: Training events alone.
            features: Columns of the user table that the template needs.

        Raises:
            SchemaError: The log's user table lacks a feature.
        """
        known = {}
        names = log.users.column_names if log.users is not None else []
        for name in features:
            if log.users is None or name not in names:
                where, fix = "template, history", "name a feature that the log has, or a user table"
                raise unknown(SchemaError, "user feature", name, names, where=where, fix=fix)
            known[name] = tuple(sorted(set(log.users[name].to_pylist()) - {"", None}))
        counts = np.bincount(log.items, minlength=len(log.catalogue))
        values = ValueBins.fit(log.values)
        return cls(log.code_names.behaviors, values, known, log.catalogue, counts)

    @cached_property
    def code_names(self) -> CodeNames:
        """Names of the vocabulary's own codes, for histories that use these codes."""
        return CodeNames(self.catalogue.ids, self.behaviors)

    def with_catalogue(self, catalogue: Catalogue) -> Vocabulary:
        """The same vocabulary with a longer catalogue; its new items have no training events."""
        counts = self.counts
        if counts is not None:
            counts = np.pad(counts, (0, len(catalogue) - len(counts)))
        return Vocabulary(self.behaviors, self.values, self.features, catalogue, counts)

    def columns(self, histories: Sequence[History], *, times: bool = False) -> EventColumns:
        """Codes of every event of ``histories``.

        Args:
            histories: N histories.
            times: Whether to count earlier events with the same item, too; this needs a sort.

        Raises:
            UnknownNameError: An event's item or behaviour is not in the vocabulary.
        """
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        items, behaviors = self._known_names(histories)
        moments = _join([history.timestamps for history in histories], np.int64)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        values = self.values.codes(_join([history.values for history in histories], np.float32))
        codes = {"behavior": behaviors, "item": items, "text": items, "value": values}
        codes |= {"hour": hour_codes(moments), "weekday": weekday_codes(moments)}
        codes["gap"] = gap_codes(moments, starts)
        if times:
            codes["times"] = times_codes(items, lengths)
        return EventColumns(lengths, codes)

    def item_codes(self, history: History) -> IntArray:
        """(E,) codes of a history's items in this vocabulary's catalogue."""
        return self._known_names([history])[0]

    def feature_code(self, name: str, value: str) -> int:
        """Code of a user feature's value; 0 is the word "unknown"."""
        known = self.features[name]
        return known.index(value) + 1 if value in known else 0

    def _known_names(self, histories: Sequence[History]) -> tuple[IntArray, IntArray]:
        items, behaviors = [], []
        for history in histories:
            item_map, behavior_map = self._recoding(history.code_names)
            items.append(item_map[history.items])
            behaviors.append(behavior_map[history.behaviors])
        joined = _join(items, np.int32), _join(behaviors, np.int32)
        if any(len(codes) and codes.min() < 0 for codes in joined):
            self._raise_unknown(histories, items, behaviors)
        return joined

    def _recoding(self, code_names: CodeNames) -> tuple[IntArray, IntArray]:
        """Maps from other codes to the vocabulary's codes, -1 for an unknown name."""
        if code_names not in self._recodings:
            items = self.catalogue.find(code_names.items)
            ours = {name: code for code, name in enumerate(self.behaviors)}
            behaviors = [ours.get(name, -1) for name in code_names.behaviors]
            self._recodings[code_names] = (items, np.array(behaviors, dtype=np.int32))
        return self._recodings[code_names]

    def _raise_unknown(
        self, histories: Sequence[History], items: list[IntArray], behaviors: list[IntArray]
    ) -> None:
        for history, item_codes, behavior_codes in zip(histories, items, behaviors, strict=True):
            for place in np.flatnonzero((behavior_codes < 0) | (item_codes < 0)):
                where = f"user {history.user_id!r}, event {place}"
                if behavior_codes[place] < 0:
                    name = history.code_names.behaviors[history.behaviors[place]]
                    known, fix = self.behaviors, "rename it, or fine-tune on a log that has it"
                    raise unknown(UnknownNameError, "behaviour", name, known, where=where, fix=fix)
                found = f"item {history.item_ids()[place]!r} is not in the catalogue"
                expected = f"one of the model's {len(self.catalogue)} items"
                fix = "add it with model.add_items(item_table), or remove the event"
                raise UnknownNameError(found, where=where, expected=expected, fix=fix)


def _join(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, kind)]).astype(kind, copy=False)
