"""The items of a log: ids, titles, and the text that a language model reads for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_influence.data.readers import read_table
from llm_influence.data.schema import Columns, as_text, check_distinct, is_text, nearest, with_key
from llm_influence.errors import DataError, SchemaError, UnknownNameError, check_type, unknown
from llm_influence.utils import write_whole

TITLE, TEXT = "_title", "_text"
"""Columns that `Catalogue.save` adds to the item table."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All items of a log or model; the code of an item is its place in the catalogue.

    Attributes:
        ids: (I,) item ids, each once.
        titles: (I,) titles for display; "" where an item has none.
        texts: (I,) text for the language model: the title, then the other texts, joined by ". ".
        table: (I rows) all columns of the item table, ids as text in `item_id`.
    """

    ids: pa.StringArray
    titles: list[str]
    texts: list[str]
    table: pa.Table

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        *,
        item_text: Sequence[str] | None = None,
        item_title: str | None = None,
        columns: Columns | None = None,
        where: str = "item table",
    ) -> Catalogue:
        """Make a catalogue from an item table.

        Args:
            table: One row for each item: an `item_id` and any other columns.
            item_text: Columns that form an item's text, in order; the title always comes first.
                Default: all columns of text (or lists of texts).
            item_title: The column of titles. Default: the first column of text with "title" or
                "name" in its name.
            columns: May map ``item_id`` to the table's own name; used if the table has that
                column.
            where: Name of the table in messages.

        Raises:
            SchemaError: A named column is missing, or an id is empty.
            DuplicateError: An item is repeated.
            EmptyLogError: The table has no rows.
        """
        check_type(SchemaError, where, table, pa.Table, expected="an Arrow table: read_table(...)")
        table = with_key(table, "item_id", columns, where)
        ids = table["item_id"].combine_chunks()
        for name in filter(None, [item_title, *(item_text or ())]):
            if name not in table.column_names:
                known, fix = table.column_names, "correct item_text or item_title"
                raise unknown(SchemaError, "column", name, known, where=where, fix=fix)
        texts = [field.name for field in table.schema if _reads(field) and field.name != "item_id"]
        named = (name for name in texts if "title" in name.lower() or "name" in name.lower())
        title = item_title or next(named, None)
        text = [name for name in (item_text or texts) if name != title]
        parts = [as_text(table[name], name=name, where=where) for name in [title, *text] if name]
        titles = parts[0].to_pylist() if title else [""] * len(ids)
        return cls(ids, titles, _join(ids, parts), table)

    @classmethod
    def from_ids(cls, ids: pa.Array | Sequence[str]) -> Catalogue:
        """A catalogue without an item table: no titles, the ids are the texts.

        Raises:
            DuplicateError: An item is repeated.
        """
        ids = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
        check_distinct(ids, name="item_id", where="item ids")
        texts = ids.to_pylist()
        return cls(ids, [""] * len(texts), texts, pa.table({"item_id": ids}))

    def __len__(self) -> int:
        """Number of items I."""
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Catalogue({len(self):,} items, columns {', '.join(self.table.column_names)})"

    def find(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """(N,) item codes of (N,) ids, -1 where an id is not in the catalogue."""
        codes = pc.index_in(ids.cast(pa.string()), value_set=self.ids)
        return codes.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)

    def index(self, ids: pa.Array | Sequence[str]) -> npt.NDArray[np.int32]:
        """(N,) item codes of (N,) ids.

        Raises:
            UnknownNameError: An id is not in the catalogue; the message names the first one.
        """
        if not isinstance(ids, pa.Array):
            for item in ids:
                check_type(DataError, "item id", item, str, expected="ids as text, such as '4'")
            ids = pa.array(ids, pa.string())
        codes = self.find(ids)
        if (codes < 0).any():
            raise self.unknown(str(ids[int(np.argmin(codes))]), where="catalogue")
        return codes

    def unknown(self, item: str, *, where: str) -> UnknownNameError:
        """The error for an item that is not in the catalogue."""
        found = f"item {item!r} is not in the catalogue"
        expected = f"one of the catalogue's {len(self):,} items{nearest(self.ids, item)}"
        fix = "add it to the item table, or remove its events"
        return UnknownNameError(found, where=where, expected=expected, fix=fix)

    def title_of(self, item: str) -> str:
        """An item's title; "" where it has none.

        Raises:
            UnknownNameError: The item is not in the catalogue.
        """
        return self.titles_by_id([item])[item]

    def titles_by_id(self, ids: Iterable[str]) -> dict[str, str]:
        """Item id -> title, "" where an item has none, for `History.events`.

        Raises:
            UnknownNameError: An item is not in the catalogue.
        """
        ids, code_of = list(ids), self._code_of
        for item in ids:
            if item not in code_of:
                raise self.unknown(item, where="catalogue")
        return {item: self.titles[code_of[item]] for item in ids}

    def take(self, codes: npt.ArrayLike) -> Catalogue:
        """Only the items at ``codes`` (integers or a (I,) mask), in that order."""
        places = np.arange(len(self))[np.asarray(codes)]
        rows = pa.array(places)
        titles, texts = ([names[place] for place in places] for names in (self.titles, self.texts))
        return Catalogue(self.ids.take(rows), titles, texts, self.table.take(rows))

    def extend(self, other: Catalogue) -> Catalogue:
        """A catalogue with the items of ``other`` added at the end; existing codes stay.

        Raises:
            DuplicateError: An item of ``other`` is already here.
            SchemaError: A column has another type in ``other``.
        """
        ids = pa.concat_arrays([self.ids, other.ids])
        check_distinct(ids, name="item_id", where="catalogue")
        try:
            table = pa.concat_tables([self.table, other.table], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            found, expected = f"the item tables differ ({error})", "columns of the same type"
            fix = "give the columns of the new items the types of the old ones"
            raise SchemaError(found, where="catalogue", expected=expected, fix=fix) from error
        return Catalogue(ids, self.titles + other.titles, self.texts + other.texts, table)

    def save(self, path: str | Path) -> None:
        """Write the catalogue as one Parquet file.

        Raises:
            OutputError: The file cannot be written.
        """
        table = self.table.append_column(TITLE, pa.array(self.titles, pa.string()))
        whole = table.append_column(TEXT, pa.array(self.texts, pa.string()))
        write_whole(Path(path), lambda part: pq.write_table(whole, part))

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Read a saved catalogue.

        Raises:
            MissingFileError: There is no such file.
            DataError: It is not a saved catalogue.
        """
        table = read_table(path, text=())
        if not {"item_id", TITLE, TEXT} <= set(table.column_names):
            expected = f"the columns item_id, {TITLE} and {TEXT}"
            fix = "pass a file written by Catalogue.save, or use Catalogue.from_table"
            raise DataError("not a saved catalogue", where=str(path), expected=expected, fix=fix)
        ids, titles, texts = (table[name] for name in ("item_id", TITLE, TEXT))
        rest = table.drop_columns([TITLE, TEXT])
        return cls(ids.combine_chunks(), titles.to_pylist(), texts.to_pylist(), rest)

    @cached_property
    def _code_of(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.ids.to_pylist())}


def _reads(field: pa.Field) -> bool:
    """Whether a column is text, or lists of texts."""
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind)


def _join(ids: pa.StringArray, parts: Sequence[pa.ChunkedArray]) -> list[str]:
    """(I,) the non-empty parts joined by ". "; the id where all are empty."""
    if not parts:
        return ids.to_pylist()
    # Not null_handling="skip": Arrow then loses the rows with only null parts.
    ended = [
        pc.if_else(pc.equal(part, ""), "", pc.binary_join_element_wise(part, ". ", ""))
        for part in parts
    ]
    joined = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*ended, ""), 0, stop=-2)
    return pc.if_else(pc.equal(joined, ""), pa.chunked_array([ids]), joined).to_pylist()
