"""The record of an explanation: `Influence` of events on a target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from llm_influence.errors import ConfigError
from llm_influence.influence import plots, table, table_files, text
from llm_influence.influence.facts import (
    UNITS,
    Key,
    Player,
    QualityCard,
    column,
    percent,
    signed,
    tidy,
)
from llm_influence.influence.lines import Line, event_label, lines, short, strongest
from llm_influence.influence.memory_fact import memory_fact
from llm_influence.influence.sentence_facts import Target, choose_facts
from llm_influence.influence.slate_change import SlateChange
from llm_influence.types import Event, FloatArray
from llm_influence.utils import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Influence:
    """How much each event of one history, or each of its players, moved one target.

    ``print`` shows one line an event, strongest first; a notebook shows bars.

    Attributes:
        user_id: The user.
        events: The E explained events, oldest first.
        values: (E,) influence by event, or (P,) by player; positive supports the target, negative
            opposes it.
        prompt_score: Score of the prompt tokens outside every event (or player).
        target: Kind of the target (``item``, ``behavior``, ``contrast``, ``slate``, ``feedback``,
            ``feedback_value``).
        target_id: The item id, behaviour, ``"a over b"`` or list of ids that was explained.
        target_name: The same for people.
        base_value: The target without any event (or at the method's baseline), in `unit`.
        full_value: The target with all events.
        prediction: Probability of the target with all events; nan for a slate and for feedback
            predicted as a number, which have none.
        quality: How the values were made and how well they add up.
        standard_errors: Standard error of each value, for methods that sample; else None.
        players: The P players; None where the players are the events. See `by_event`.
        gates: (E,) mean gate of each event in a gated recurrence; else None. It is the part of the
            state before the event that remains after it, for every target.
        memory_shares: (E,) `MemoryPart.share` of each event in the probability of an item; the rest
            is the language model's. None for other targets, ensembles, and without memory.
        memory_log_odds: (E,) `MemoryPart.log_odds` of each event; None as above.
        block: Places of the events that were scored together, as one player; empty without any.
            Each has an equal part of the sum and of its standard error.
        target_rank: Rank of an item among the candidates of the user; None for other targets, and
            for an item that is no candidate.
        candidates: Number of these candidates; None for other targets.
        unread: Fields among ``behavior``, ``value`` and ``time`` that the model does not read. A
            sentence never gives them as a reason.
        slate_change: What the removal of one event changes on a slate, for the event that changes
            it most (`slate_changes`); None for other targets.
    """

    user_id: str
    events: Sequence[Event]
    values: FloatArray
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
    memory_shares: FloatArray | None = None
    memory_log_odds: FloatArray | None = None
    block: tuple[int, ...] = ()
    target_rank: int | None = None
    candidates: int | None = None
    unread: tuple[str, ...] = ()
    slate_change: SlateChange | None = None

    def __repr__(self) -> str:
        """A header and one line an event, strongest first."""
        order, most = strongest(self.lines()), 8
        name = short(self.target_name or self.target_id)
        chance = "" if math.isnan(self.prediction) else f" ({percent(self.prediction)})"
        total = signed(self.full_value - self.base_value)
        count = f"{len(self.events)} event{'' if len(self.events) == 1 else 's'}"
        moved = f"shares of {count}" if self._share else f"{total} {self.unit} from {count}"
        numbers = column([line.value for line in order], share=self._share)
        written = [f"  {n:>8}  {line.label}" for n, line in zip(numbers, order, strict=True)]
        rest = [f"  ... and {len(order) - most} more"] if len(order) > most else []
        header = f"Influence on {self.target} {name!r}{chance} of user {self.user_id}"
        return "\n".join([f"{header} by {self.quality.method}: {moved}", *written[:most], *rest])

    @property
    def key(self) -> Key:
        """What identifies the explanation; table columns of these names hold the same."""
        return self.user_id, self.quality.method, self.target, self.target_id

    @property
    def unit(self) -> Literal["share", "NDCG", "log-odds", "points"]:
        """Unit of the values."""
        return "share" if self._share else UNITS.get(self.target, "log-odds")

    @property
    def _share(self) -> bool:
        return self.quality.units == "share"

    def by_event(self) -> Influence:
        """The same with one value an event: fields added up, the user's part in `prompt_score`.

        The sum of everything stays the same. The standard error of an event is the sum of its
        fields' errors, which is never below the true one. The card stays that of the players.
        Events with a field in the block form the block of events, in equal parts.
        """
        if self.players is None:
            return self
        owner = np.array([-1 if event is None else event for event, _ in self.players])
        of_events = owner >= 0

        def added(numbers: FloatArray) -> FloatArray:
            sums = np.zeros(len(self.events))
            np.add.at(sums, owner[of_events], numbers[of_events])
            return sums

        errors = None if self.standard_errors is None else added(self.standard_errors)
        values, block = added(self.values), sorted({*owner[list(self.block)].tolist()} - {-1})
        for numbers in (values, errors):
            if block and numbers is not None:
                numbers[block] = numbers[block].mean()
        return replace(
            self,
            values=values,
            prompt_score=self.prompt_score + float(self.values[~of_events].sum()),
            standard_errors=errors,
            players=None,
            block=tuple(block),
        )

    def lines(self) -> list[Line]:
        """One line an event, oldest first, and one before them for the events of the block."""
        whole = self.by_event()
        return lines(self.events, whole.values, whole.standard_errors, whole.block)

    def ranked(self) -> list[tuple[Event, float]]:
        """Events with their values, most supporting first; ties keep the more recent first."""
        values = self.by_event().values
        order = np.lexsort((-np.arange(len(self.events)), -values))
        return [(self.events[place], float(values[place])) for place in order]

    def top(self, k: int = 5) -> list[tuple[Event, float]]:
        """The ``k`` strongest events with their values, supporting and opposing ones alike."""
        whole = self.by_event()
        return [(self.events[p], float(whole.values[p])) for p in whole._strongest()[:k]]

    def _strongest(self) -> list[int]:
        """Places of the events, largest absolute value first; ties keep the more recent first."""
        order = np.lexsort((-np.arange(len(self.events)), -np.abs(self.values)))
        return [int(place) for place in order]

    def to_text(self, language: str = "en", *, most: int = 2, recommended: bool = False) -> str:
        """Describe the influence in one sentence, or in two for shares.

        The sentence names only events that carry the influence, with their own numbers. Effects
        on the target become reasons for and against; shares stay shares; a baseline method
        (random, recency) is called one. Times count back from the latest event.
        One more sentence says what came through the memory, if the model has one (`MemoryFact`),
        and for a slate, which single event would change it most and how (`SlateChange`).

        Args:
            language: ``"en"`` (English) or ``"zh"`` (Chinese).
            most: Largest number of events named on each side. Default 2.
            recommended: Write "recommended" instead of "predicted". True only for an item on the
                user's list of recommendations, which the influence itself does not hold.

        Raises:
            ConfigError: The language is unknown, ``most`` is below 1, or there is no event.
        """
        if most < 1 or not len(self.events):
            raise ConfigError(
                f"most={most} for an explanation of {len(self.events)} events",
                where="to_text",
                expected="at least one event, and most of at least 1",
                fix="explain a history that has events, and leave most at 2",
            )
        whole = self.by_event()
        place = (
            None
            if self.target_rank is None or self.candidates is None
            else (self.target_rank, self.candidates)
        )
        facts = choose_facts(
            whole.events,
            whole.values,
            whole.standard_errors,
            whole.block,
            card=self.quality,
            target=Target(
                kind=self.target,
                name=tidy(self.target_name or self.target_id),
                prediction=self.prediction,
                value=self.full_value,
                unit=self.unit,
                recommended=recommended,
                place=place,
            ),
            moved=self.full_value - self.base_value,
            unread=self.unread,
            most=most,
            change=self.slate_change,
        )
        memory = memory_fact(self.events, self.target_id, self.memory_shares, self.memory_log_odds)
        return text.sentence(facts, language, memory)

    def plot(self, axis: Axes | None = None) -> Axes:
        """Draw one bar an event, oldest at the top, on ``axis`` or on a new figure.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        chance = "" if math.isnan(self.prediction) else f" ({percent(self.prediction)})"
        shown = self.lines()
        return plots.bars(
            [line.label for line in shown],
            np.array([line.value for line in shown]),
            title=short(self.target_name or self.target_id) + chance,
            score_name=self._score_name(),
            share=self._share,
            axis=axis,
        )

    def to_html(self) -> str:
        """The sentence and one bar an event as an HTML fragment with inline style."""
        note = f"{self._score_name()}, oldest event first; {', '.join(self.quality.words())}"
        shown = self.lines()
        return plots.bars_html(
            [line.label for line in shown],
            np.array([line.value for line in shown]),
            text=self.to_text() if len(self.events) else "No event was explained.",
            note=note,
            share=self._share,
        )

    def _repr_html_(self) -> str:
        """Bars in a notebook."""
        return self.to_html()

    def _score_name(self) -> str:
        return f"influence ({self.unit}) by {self.quality.method}"

    def to_arrow(self) -> pa.Table:
        """One row an event or player, with the columns of `llm_influence.influence.table.SCHEMA`.

        Raises:
            DataError: The record is broken; see `to_arrow`.
        """
        return to_arrow([self])

    def to_pandas(self) -> pd.DataFrame:
        """The same as a pandas frame.

        Raises:
            ConfigError: pandas is not installed.
        """
        require("pandas", extra="frames", purpose="Influence.to_pandas")
        return self.to_arrow().to_pandas()

    def to_shap(self) -> Any:  # noqa: ANN401 - of an optional library
        """A ``shap.Explanation`` with one feature an event, for the plots of shap.

        ``base_values`` is `base_value` plus `prompt_score`, so that the values of a complete method
        add up to `full_value`. ``data`` holds the behaviours.

        Raises:
            ConfigError: shap is not installed.
        """
        shap, whole = require("shap", extra="shap", purpose="Influence.to_shap"), self.by_event()
        return shap.Explanation(
            values=np.array(whole.values, dtype=np.float64),
            base_values=whole.base_value + whole.prompt_score,
            data=np.array([event.behavior for event in self.events], dtype=object),
            feature_names=[event_label(event) for event in self.events],
        )

    def to_json(self) -> str:
        """The record as JSON; null where a number does not exist."""
        return table_files.to_json(self._fields())

    def save(self, path: str | Path) -> Path:
        """Write the record as ``.json`` or ``.parquet``, whole or not at all.

        Raises:
            ConfigError: The path has another suffix.
            OutputError: The place cannot be written.
        """
        return table_files.save(self._fields(), Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Influence:
        """Read the explanation that `save` wrote.

        Raises:
            ConfigError: The path has another suffix.
            DataError: The file cannot be read, or does not hold exactly one explanation.
        """
        return cls._of(table_files.load(Path(path)))

    def _fields(self) -> dict[str, Any]:
        """The record as plain data: its own fields and those of the card."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        card, change = own.pop("quality"), self.slate_change
        own["slate_change"] = None if change is None else asdict(change)
        return own | {each.name: getattr(card, each.name) for each in fields(card)}

    @classmethod
    def _of(cls, plain_fields: Mapping[str, Any]) -> Influence:
        """The record of plain data."""
        own = dict(plain_fields)
        card = QualityCard(**{each.name: own.pop(each.name) for each in fields(QualityCard)})
        if own["players"] is not None:
            own["players"] = tuple(Player(*pair) for pair in own["players"])
        own["unread"] = tuple(own["unread"])
        if own["slate_change"] is not None:
            own["slate_change"] = SlateChange.of(own["slate_change"])
        return cls(**own, quality=card)


def to_arrow(influences: Iterable[Influence], run: str = "") -> pa.Table:
    """Lay explanations out as rows, one an event or player, one explanation after another.

    Args:
        influences: Explanations of any methods and targets.
        run: Text for the ``run`` column.

    Returns:
        A table with the columns of `llm_influence.influence.table.SCHEMA`, the events of each
        explanation oldest first. Event values become float32, as in a log.

    Raises:
        DataError: An explanation has no event, a score that is not finite, another number of
            scores than players, an event without a player, or events out of time order.
    """
    return table.table_of([influence._fields() for influence in influences], run)


def from_arrow(rows: pa.Table) -> list[Influence]:
    """Read the explanations of a table; the reverse of `to_arrow` except for the run.

    Raises:
        SchemaError: A column is missing or has another type.
        DataError: Rows of an explanation are missing or out of order.
    """
    return [Influence._of(plain_fields) for plain_fields in table.fields_of(rows)]


def by_event(rows: pa.Table) -> pa.Table:
    """A table with one row an event, whatever its players were; see `Influence.by_event`.

    Raises:
        SchemaError, DataError: As in `from_arrow`.
    """
    starts = table.explanation_starts(rows)
    if table.events_only(rows, starts).all():
        return rows
    records = [record.by_event() for record in from_arrow(rows)]
    owner = np.repeat(np.arange(len(records)), [len(record.events) for record in records])
    runs = rows["run"].take(pa.array(starts[owner]))
    return to_arrow(records).set_column(0, table.SCHEMA.field("run"), runs)
