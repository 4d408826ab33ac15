"""A knowledge graph: triples about entities, and which items are which of them.

Files are those of RecBole, tab-separated: ``.kg`` with head_id, relation_id and tail_id, ``.link``
with item_id and entity_id. Such a graph (KB4Rec, Zhao et al. 2019, arXiv:1807.11141, links films to
Freebase) often has ids alone; what they are called is a third table, which may not be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.keys import check_distinct
from llm_influence.data.readers import describe, read_table
from llm_influence.data.schema import as_text, check_id_type, check_no_nulls, empty_cell
from llm_influence.errors import DataError, EmptyLogError, SchemaError, choices

TRIPLE = ("head_id", "relation_id", "tail_id")
LINK = ("item_id", "entity_id")
NAME = ("entity_id", "name")


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """What is known of some entities, items among them.

    Attributes:
        triples: (T rows) `TRIPLE`, all text: the head has the relation to the tail.
        links: (L rows) `LINK`, all text; each item once.
        names: Entity id to name, of the entities that have one; often of none.
    """

    triples: pa.Table
    links: pa.Table
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, triples: object, links: object = None, names: object = None) -> KnowledgeGraph:
        """Read a graph.

        Args:
            triples: Table of `TRIPLE`: a ``.kg`` file, or anything that `read_table` reads.
            links: Table of `LINK`; default: the file of the same name that ends in ``.link``.
            names: Table of `NAME`, or None.

        Raises:
            SchemaError: A column is missing, of another type, or has an empty cell.
            DuplicateError: An item or a name's entity stands twice.
            EmptyLogError: A table has no rows.
            DataError: A file is missing or cannot be read, or no linked entity is in the graph.
        """
        if links is None:
            links = _beside(triples)
        facts, linked = _columns(triples, TRIPLE), _columns(links, LINK)
        where = describe(links)
        check_distinct(linked["item_id"].combine_chunks(), name="item_id", where=where)
        entities = pa.chunked_array(facts["head_id"].chunks + facts["tail_id"].chunks)
        if not pc.any(pc.is_in(linked["entity_id"], value_set=entities.unique())).as_py():
            raise DataError(
                f"none of its {len(linked)} entities is in the graph",
                where=where,
                expected=f"entities of {describe(triples)}",
                fix="pass the two files of one graph",
            )
        return cls(facts, linked, {} if names is None else _names(names))


def _beside(triples: object) -> Path:
    if not isinstance(triples, (str, Path)):
        raise DataError(
            "no links",
            where=describe(triples),
            expected="a table of item_id and entity_id beside triples that are no file",
            fix="pass links",
        )
    return Path(triples).with_suffix(".link")


def _columns(source: object, wanted: tuple[str, ...]) -> pa.Table:
    """The ``wanted`` columns as text, none of whose cells is empty."""
    where = describe(source)
    table = read_table(source, where=where, text=wanted)
    for name in wanted:
        if name not in table.column_names:
            raise SchemaError(
                f"column {name!r} is missing",
                where=where,
                expected=f"the columns {', '.join(wanted)}; it has "
                + choices(table.column_names, name),
                fix="rename the file's own column in its header",
            )
    if not table.num_rows:
        raise EmptyLogError(
            "the table has no rows", where=where, expected="rows", fix="check its source"
        )
    found = {}
    for name in wanted:
        check_id_type(table[name].type, name=name, where=where)
        check_no_nulls(table[name], name=name, where=where)
        found[name] = as_text(table[name], name=name, where=where)
        blank = pc.index(found[name], "").as_py()
        if blank >= 0:
            raise empty_cell(name, blank, where)
    return pa.table(found)


def _names(source: object) -> dict[str, str]:
    table, where = _columns(source, NAME), describe(source)
    check_distinct(table["entity_id"].combine_chunks(), name="entity_id", where=where)
    return dict(zip(table["entity_id"].to_pylist(), table["name"].to_pylist(), strict=True))
