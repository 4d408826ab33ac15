"""The record of influence over time: `InfluenceMatrix`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_influence.influence import plots
from llm_influence.influence.facts import UNITS
from llm_influence.influence.lines import event_label, short
from llm_influence.types import Event, FloatArray
from llm_influence.utils import require

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, eq=False)
class InfluenceMatrix:
    """How much each event moved the prediction after itself and after every later event.

    Attributes:
        user_id: The user.
        events: The E events, oldest first.
        values: (E, E); row i, column j is the influence of event i on the prediction after event
            j, nan where i comes after j.
        full_values: (E,) the target after each event, with all events up to it.
        target: Kind of the targets, as in `Influence`.
        target_ids: E ids of what was explained after each event.
        target_names: The same for people.
        removal: What "without this event" means, ``drop`` or ``mask``.
        evaluations: Model evaluations of the matrix.
    """

    user_id: str
    events: Sequence[Event]
    values: FloatArray
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
        pandas = require("pandas", extra="frames", purpose="InfluenceMatrix.to_pandas")
        frame: pd.DataFrame = pandas.DataFrame(
            self.values,
            index=pandas.Index([event.name for event in self.events], name="event"),
            columns=pandas.Index(list(self.target_names), name="prediction"),
        )
        return frame

    def plot(self, axis: Axes | None = None) -> Axes:
        """Draw a heat map, an event a row and a prediction a column; see `plots.heatmap`.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        return plots.heatmap(
            self.values,
            [event_label(event) for event in self.events],
            [short(name) for name in self.target_names],
            score_name=f"influence ({UNITS.get(self.target, 'log-odds')})",
            column_name="prediction after each event",
            axis=axis,
        )
