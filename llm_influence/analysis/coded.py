"""Every event as a few small integers and a score, on disk, user after user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from llm_influence.analysis.columns import Column, select
from llm_influence.analysis.levels import Factor
from llm_influence.analysis.tables import InfluenceView
from llm_influence.types import FloatArray, IntArray

Response = Literal["score", "size"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some events; those of a user stand together, also across batches.

    Attributes:
        user: (n,) codes of users, never decreasing.
        codes: (n, F) level of each factor.
        response: (n,) score, or its size.
    """

    user: IntArray
    codes: npt.NDArray[np.uint8]
    response: FloatArray

    def columns(self) -> list[IntArray]:
        """F arrays (n,) of codes, wide enough to be multiplied."""
        return [self.codes[:, f].astype(np.int64) for f in range(self.codes.shape[1])]


class CodedEvents:
    """The events of a view, coded by factors, in a temporary table of its database.

    Attributes:
        view: The view.
        factors: The F factors.
    """

    def __init__(self, view: InfluenceView, factors: Sequence[Factor], response: Response) -> None:
        """Code and sort every event once; later passes read about twenty bytes of each."""
        self.view, self.factors = view, tuple(factors)
        columns = {
            "user": view.columns["user"],
            "explanation": view.columns["explanation"],
            "position": view.columns["position"],
            "response": view.columns["score"],
            **{f"f{place}": coded_column(view, factor) for place, factor in enumerate(factors)},
        }
        codes = ", ".join(f"f{place}::UTINYINT AS f{place}" for place in range(len(factors)))
        score = "abs(response)" if response == "size" else "response"
        view.execute("DROP TABLE IF EXISTS coded")
        view.execute(
            f'CREATE TABLE coded AS SELECT "user", {codes}, {score} AS response '
            f"FROM ({select(columns, parts=view.parts)}) "
            'ORDER BY "user", explanation, position'
        )

    def batches(self) -> Iterator[Batch]:
        """All events."""
        return self._read("SELECT * FROM coded")

    def of_users(self, users: IntArray) -> Batch:
        """The events of some users, in memory."""
        listed = ", ".join(str(int(user)) for user in np.sort(users))
        query = f'SELECT * FROM coded WHERE "user" IN ({listed})'
        parts = list(self._read(query))
        return Batch(
            np.concatenate([part.user for part in parts]),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.response for part in parts]),
        )

    def _read(self, query: str) -> Iterator[Batch]:
        for table in self.view.batches(query):
            codes = [table[f"f{place}"].to_numpy() for place in range(len(self.factors))]
            yield Batch(
                table["user"].to_numpy(), np.stack(codes, axis=1), table["response"].to_numpy()
            )


def coded_column(view: InfluenceView, factor: Factor) -> Column:
    """The column of the view that holds the codes of a factor's levels."""
    column = view.columns[factor.name]
    sql = factor.codes if factor.of_rows else factor.codes.format(column.sql)
    return Column(sql, column.needs, column.joins)
