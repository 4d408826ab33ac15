"""Codes and words of every field: what a model knows how to say about an event.

A `Vocabulary` is fitted on the training log and saved with the model. It turns histories of any log
into columns of codes (behaviour, item, gap, value) and says which word stands for each code.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import SchemaError, UnknownNameError, choices
from llm_influence.rendering.time_words import gap_codes, hour_codes, times_codes, weekday_codes
from llm_influence.types import CodeNames, FloatArray, History, IntArray

UNKNOWN = "unknown"
MOST_DISTINCT_VALUES = 32
QUANTILES = 16


@dataclass(frozen=True, eq=False)
class ValueBins:
    """Values (ratings, amounts) in few bins. Code 0 is "no value", code 1 + k is bin k.

    Attributes:
        edges: (K,) lower edges, ascending; the first bin also takes everything below it.
    """

    edges: FloatArray

    @classmethod
    def fit(cls, values: FloatArray) -> ValueBins:
        """Every distinct value where there are few (ratings), else quantiles (amounts)."""
        known = values[~np.isnan(values)].astype(np.float64)
        distinct = np.unique(known)
        if len(distinct) > MOST_DISTINCT_VALUES:
            distinct = np.unique(np.quantile(known, np.arange(QUANTILES) / QUANTILES))
        return cls(distinct)

    def codes(self, values: FloatArray) -> IntArray:
        """(S,) codes of (S,) values, NaN meaning "no value"."""
        bins = np.searchsorted(self.edges, values, side="right").clip(1)
        return np.where(np.isnan(values), 0, bins).astype(np.int32)

    def words(self) -> list[str]:
        """Words by code; the word of code 0 is empty, so that nothing is said."""
        return ["", *(f"{edge:.4g}" for edge in self.edges)]


@dataclass(frozen=True, slots=True, eq=False)
class EventColumns:
    """Codes of all events of N histories, one after the other (S events in all).

    Attributes:
        lengths: (N,) events of each history.
        codes: (S,) codes by field (`FIELDS`); ``text`` has the item's codes.
    """

    lengths: IntArray
    codes: Mapping[str, IntArray]


@dataclass(eq=False)
class Vocabulary:
    """What a model can say about events and users.

    Attributes:
        behaviors: Behaviours by code.
        values: Bins of the event values.
        features: Known values of each user feature that the template uses.
        catalogue: Items by code.
        counts: (I,) events of training by item; None for models saved before these were kept.
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
        """The vocabulary of a training log.

        Args:
            log: Events of training alone.
            features: Columns of the user table to know values of.

        Raises:
            SchemaError: A feature is no column of the log's user table.
        """
        known = {}
        for name in features:
            if log.users is None or name not in log.users.column_names:
                columns = log.users.column_names if log.users is not None else []
                raise SchemaError(
                    f"the user table has no column {name!r}",
                    where="template, history line",
                    expected=choices(columns, name),
                    fix="name a user feature that the log has, or give a user table",
                )
            known[name] = tuple(sorted(set(log.users[name].to_pylist()) - {"", None}))
        counts = np.bincount(log.items, minlength=len(log.catalogue))
        values = ValueBins.fit(log.values)
        return cls(log.code_names.behaviors, values, known, log.catalogue, counts)

    @cached_property
    def code_names(self) -> CodeNames:
        """The vocabulary's own names, for histories written in its codes."""
        return CodeNames(self.catalogue.ids, self.behaviors)

    def with_catalogue(self, catalogue: Catalogue) -> Vocabulary:
        """The same vocabulary over a longer catalogue, whose new items nobody has met."""
        counts = self.counts
        if counts is not None:
            counts = np.pad(counts, (0, len(catalogue) - len(counts)))
        return Vocabulary(self.behaviors, self.values, self.features, catalogue, counts)

    def columns(self, histories: Sequence[History], *, times: bool = False) -> EventColumns:
        """Codes of every event of ``histories``.

        Args:
            histories: Any number.
            times: Also count how often each item has been before, which takes a sort.

        Raises:
            UnknownNameError: An event's item or behaviour is not known here.
        """
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        items, behaviors = self._known_names(histories)
        moments = _join([history.timestamps for history in histories], np.int64)
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        values = self.values.codes(_join([history.values for history in histories], np.float32))
        codes = {"behavior": behaviors, "item": items, "text": items, "value": values}
        codes |= {"gap": gap_codes(moments, starts)}
        codes |= {"hour": hour_codes(moments), "weekday": weekday_codes(moments)}
        if times:
            codes["times"] = times_codes(items, lengths)
        return EventColumns(lengths, codes)

    def item_codes(self, history: History) -> IntArray:
        """(E,) item codes of one history in this vocabulary's catalogue."""
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
        """Maps from another code_names's codes to ours, -1 where we lack the name."""
        if code_names not in self._recodings:
            items = self.catalogue.find(code_names.items)
            ours = {name: code for code, name in enumerate(self.behaviors)}
            behaviors = [ours.get(name, -1) for name in code_names.behaviors]
            self._recodings[code_names] = (items, np.array(behaviors, dtype=np.int32))
        return self._recodings[code_names]

    def _raise_unknown(
        self,
        histories: Sequence[History],
        items: Sequence[IntArray],
        behaviors: Sequence[IntArray],
    ) -> None:
        for history, item_codes, behavior_codes in zip(histories, items, behaviors, strict=True):
            for place in np.flatnonzero(behavior_codes < 0):
                name = history.code_names.behaviors[history.behaviors[place]]
                raise UnknownNameError(
                    f"unknown behaviour {name!r}",
                    where=f"user {history.user_id!r}, event {place}",
                    expected=choices(self.behaviors, name),
                    fix="rename the behaviour, or fine-tune on a log that has it",
                )
            for place in np.flatnonzero(item_codes < 0):
                raise UnknownNameError(
                    f"item {history.item_ids()[place]!r} is not in the catalogue",
                    where=f"user {history.user_id!r}, event {place}",
                    expected=f"one of the model's {len(self.catalogue)} items",
                    fix="add it with model.add_items(item_table), or remove the event",
                )


def _join(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, kind)]).astype(kind, copy=False)
