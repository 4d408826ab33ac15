"""A table as a link that a reader saves as a CSV file; the page stays one file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_influence.analysis.output import to_csv


@dataclass(frozen=True, slots=True)
class CsvLink:
    """Where a link leads.

    Attributes:
        name: Of the file that is saved.
        address: All of it, as a data URI.
    """

    name: str
    address: str


def csv_link(name: str, records: Sequence[Mapping[str, Any]]) -> CsvLink:
    """The link of flat records; ``name`` is the file's, without its ending."""
    return CsvLink(f"{name}.csv", data_uri("text/csv;charset=utf-8", to_csv(records).encode()))


def data_uri(kind: str, content: bytes) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
