"""What an explanation is: the events, their scores, and how far to trust them.

Data only: the methods that say, tabulate or draw it are thin and call the functions of the
modules beside this one, which are imported when they are used.

Influence of every event on every later prediction of one history, as a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from llm_influence.types import Event, FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class QualityCard:
    """How an explanation was made, and what was measured about it. What was not measured is nan.

    Attributes:
        method: The registry's name of the method.
        removal: What "without this event" meant: ``drop``, ``mask``, or ``none`` for methods that
            remove nothing.
        units: ``target`` when scores are in the target's own units (`Influence.unit`), ``share``
            when they are shares of a whole.
        completeness_gap: ``|sum of scores - (full - base)| / |full - base|``; 0 is perfect. Only
            methods with units ``target`` promise anything about it.
        evaluations: Forward evaluations of the model that the method spent, a backward counting as one.
        seed: Seed of whatever was drawn at random.
        left_out: Older events that did not fit the context and could get no influence.
        largest_standard_error: The largest of `Influence.standard_errors`, for methods that sample.
        converged: Whether an iterative method reached its tolerance; None for all others.
        lds: Linear fidelity: Spearman correlation, over random sets of events drawn for this
            purpose alone, of the target with only those events and the sum of their scores.
        fidelity_masks: How many sets that was; short histories have fewer than were asked for.
        agreement: Spearman correlation of the scores with those of another method.
        agreement_with: That method, empty where none was asked for.
        card_evaluations: Forward evaluations spent on this card, apart from ``evaluations``.
        bfloat16_error: Where the model was read in bfloat16, the largest difference from float32
            of a value of the target, on a sample of the histories that were explained together.
    """

    method: str
    removal: str
    units: Literal["target", "share"]
    completeness_gap: float
    evaluations: int
    seed: int
    left_out: int
    largest_standard_error: float = float("nan")
    converged: bool | None = None
    lds: float = float("nan")
    fidelity_masks: int = 0
    agreement: float = float("nan")
    agreement_with: str = ""
    card_evaluations: int = 0
    bfloat16_error: float = float("nan")


@dataclass(frozen=True, slots=True)
class Player:
    """What gets a score of its own, where that is not simply an event.

    Attributes:
        event: Place of the event among the events; None for the user's features.
        field: The part of the event (``behavior``, ``item``, ``gap``, ``value``...), None for the
            whole of it; ``user`` for the user's features.
    """

    event: int | None
    field: str | None = None


UNITS: dict[str, Literal["NDCG", "points"]] = {"slate": "NDCG", "feedback_value": "points"}
"""What a target is measured in, where that is no log-odds; points are those of the label."""

USER = Player(None, "user")
"""The user's features, all together."""


Key = tuple[str, str, str, str]
"""User, method, target, target id: what an explanation is known by, whatever run made it."""


@dataclass(frozen=True, slots=True, eq=False)
class Influence:
    """How much each event of one history, or each of its players, moved one target.

    Attributes:
        user_id: Whose history.
        events: The E events that were explained, oldest first.
        scores: (E,) influence by event, or (P,) by player; positive supports the target, negative
            opposes it.
        prompt_score: What tokens outside every event (or player) received.
        target: Name of the target kind (``item``, ``behavior``, ``contrast``, ``slate``,
            ``feedback``, ``feedback_value``).
        target_id: The item id, behaviour, ``"a over b"`` or list of ids that was explained.
        target_name: The same for people.
        base_value: The target without any event (or at the method's baseline), in `unit`.
        full_value: The target with all events.
        prediction: Probability of the target with all events; nan for a slate and for feedback
            predicted as a number, which have none.
        quality: How the scores were made and how well they add up.
        standard_errors: Standard error of each score, for methods that sample; else None.
        players: Whose the P scores are; None: the events'. See `by_event`.
        gates: (E,) mean gate of each event, of a recurrence (docs/recurrent.md); else None. Part of
            the state before the event that is still there after it, whatever the target.
    """

    user_id: str
    events: Sequence[Event]
    scores: FloatArray
    prompt_score: float
    target: str
    target_id: str
    target_name: str
    base_value: float
    full_value: float
    prediction: float
    quality: QualityCard
    standard_errors: FloatArray | None = None
    players: Sequence[Player] | None = None
    gates: FloatArray | None = None

    @property
    def key(self) -> Key:
        """What the explanation is known by; columns of that name hold the same."""
        return self.user_id, self.quality.method, self.target, self.target_id

    @property
    def unit(self) -> Literal["share", "NDCG", "log-odds", "points"]:
        """What a score is measured in."""
        if self.quality.units == "share":
            return "share"
        return UNITS.get(self.target, "log-odds")

    def by_event(self) -> Influence:
        """The same with one score an event: its fields added up, the user's part in the frame.

        The sum of everything stays what it was. An event's standard error is the sum of its
        fields' errors, which is never below the true one, whatever their correlation. The card
        stays that of the players.
        """
        if self.players is None:
            return self
        owner = np.array([-1 if p.event is None else p.event for p in self.players])
        of_events = owner >= 0

        def added(numbers: FloatArray) -> FloatArray:
            sums = np.zeros(len(self.events))
            np.add.at(sums, owner[of_events], numbers[of_events])
            return sums

        errors = self.standard_errors
        return replace(
            self,
            scores=added(self.scores),
            prompt_score=self.prompt_score + float(self.scores[~of_events].sum()),
            standard_errors=None if errors is None else added(errors),
            players=None,
        )

    def ranked(self) -> list[tuple[Event, float]]:
        """Events with their scores, most supporting first; ties keep the more recent first."""
        scores = self.by_event().scores
        order = np.lexsort((-np.arange(len(self.events)), -scores))
        return [(self.events[i], float(scores[i])) for i in order]

    def gaps(self) -> list[int | None]:
        """Seconds since the event before, None for the first."""
        times = [event.timestamp for event in self.events]
        return [None, *(b - a for a, b in pairwise(times))][: len(times)]

    def to_text(self, language: str = "en") -> str:
        """One grounded sentence, English (``"en"``) or Chinese (``"zh"``); see `sentence`."""
        from llm_influence.influence.text import to_text

        return to_text(self, language)

    def to_arrow(self) -> pa.Table:
        """One row an event or player; columns: `llm_influence.influence.table.SCHEMA`."""
        from llm_influence.influence.table import to_arrow

        return to_arrow([self])

    def to_pandas(self) -> pd.DataFrame:
        """The same as a pandas frame.

        Raises:
            ConfigError: pandas is not installed.
        """
        from llm_influence.utils import require

        require("pandas", extra="frames", purpose="Influence.to_pandas")
        return self.to_arrow().to_pandas()

    def plot(self, axis: Axes | None = None) -> Axes:
        """Bars along the timeline, on ``axis`` or a new figure; see `figure`.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        from llm_influence.influence.plots import plot

        return plot(self, axis)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from llm_influence.influence.plots import to_html

        return to_html(self)


@dataclass(frozen=True, slots=True, eq=False)
class InfluenceMatrix:
    """How much each event moved the prediction after itself and after every later event.

    Attributes:
        user_id: Whose history.
        events: The E events, oldest first.
        scores: (E, E); row i, column j is the influence of event i on the prediction after event
            j, nan where i comes after j.
        full_values: (E,) the target after each event, with all events up to it.
        target: Kind of the targets, as in `Influence`.
        target_ids: E ids, what was explained after each event.
        target_names: The same for people.
        removal: What "without this event" meant, ``drop`` or ``mask``.
        evaluations: Forward evaluations of the model that the matrix took.
    """

    user_id: str
    events: Sequence[Event]
    scores: FloatArray
    full_values: FloatArray
    target: str
    target_ids: Sequence[str]
    target_names: Sequence[str]
    removal: str
    evaluations: int

    def to_pandas(self) -> pd.DataFrame:
        """(E, E) frame: a row an event, named by its item; a column a prediction, by its target.

        Raises:
            ConfigError: pandas is not installed.
        """
        from llm_influence.utils import require

        pandas = require("pandas", extra="frames", purpose="InfluenceMatrix.to_pandas")
        frame: pd.DataFrame = pandas.DataFrame(
            self.scores,
            index=pandas.Index([event.name for event in self.events], name="event"),
            columns=pandas.Index(list(self.target_names), name="prediction"),
        )
        return frame

    def plot(self, axis: Axes | None = None) -> Axes:
        """A map of the matrix on ``axis`` or a new figure; see `figure.plot_matrix`.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        from llm_influence.influence.plots import plot_matrix

        return plot_matrix(self, axis)
