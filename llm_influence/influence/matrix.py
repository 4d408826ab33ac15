"""Influence of every event on every later prediction of one history, as a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_influence.types import Event, FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


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
        passes: Forward passes of the model that the matrix took.
    """

    user_id: str
    events: Sequence[Event]
    scores: FloatArray
    full_values: FloatArray
    target: str
    target_ids: Sequence[str]
    target_names: Sequence[str]
    removal: str
    passes: int

    def to_pandas(self) -> pd.DataFrame:
        """(E, E) frame: a row an event, named by its item; a column a prediction, by its target.

        Raises:
            ConfigError: pandas is not installed.
        """
        from llm_influence.extras import require

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
        from llm_influence.influence.figure import plot_matrix

        return plot_matrix(self, axis)
