"""Items whose text also says what a graph knows of them: words that a language model can read.

Where entities have names these are the words ("directed by: Quentin Tarantino"). Ids such as
``m.0bln8`` are no words. What a graph without names can say is which items an item is like: the
titles of those that share its rarest entities, "like: Jackie Brown (1997), Four Rooms (1995)".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.item_facts import ITSELF, ItemFacts
from llm_influence.errors import DataError, SchemaError, choices

LIKE = "like"
"""Column that holds the titles of an item's neighbours."""


def enriched(
    catalogue: Catalogue,
    facts: ItemFacts,
    kind: Literal["names", "neighbors"],
    *,
    named: int = 3,
    among: Catalogue | None = None,
) -> Catalogue:
    """The same items with columns and texts that say what the graph knows of them.

    Args:
        catalogue: The items. Those that the graph does not know stay as they are.
        facts: What it knows.
        kind: ``names``: a column a relation, the names of its entities, those that most items have
            first. ``neighbors``: the column `LIKE`, titles of the items most like it.
        named: Most names of a relation, or most titles.
        among: Items that neighbours are sought among; default: ``catalogue``. New items are
            enriched among the old ones.

    Raises:
        DataError: ``names`` of a graph that has none, or the graph knows none of the items.
        SchemaError: The catalogue has a column of that name already.
    """
    if kind == "names":
        columns = _names(catalogue, facts, named)
    else:
        columns = {LIKE: _titles(catalogue, facts, named, among or catalogue)}
    table, texts = catalogue.table, list(catalogue.texts)
    for name, cells in columns.items():
        if name in table.column_names:
            raise SchemaError(
                f"the items have a column {name!r} already",
                where="data.knowledge.text",
                expected=f"another name than {choices(table.column_names)}",
                fix="rename the item table's column",
            )
        table = table.append_column(name, pa.array(cells, pa.list_(pa.string())))
        words = name.replace("_", " ")
        for place, cell in enumerate(cells):
            if cell:
                texts[place] += f". {words}: {', '.join(cell)}"
    return Catalogue(catalogue.ids, list(catalogue.titles), texts, table)


def relation_columns(relations: Sequence[str]) -> Mapping[str, str]:
    """Relation to the name of its column: its last part, the whole where two end alike."""
    last = [relation.rpartition(".")[2] for relation in relations]
    return {
        relation: short if last.count(short) == 1 else relation
        for relation, short in zip(relations, last, strict=True)
    }


def _names(catalogue: Catalogue, facts: ItemFacts, named: int) -> dict[str, list[list[str]]]:
    table = facts.table.filter(pc.not_equal(facts.table["name"], ""))
    table = table.filter(pc.not_equal(table["relation"], ITSELF))
    if not len(table):
        example = facts.table["entity"][0].as_py()
        raise DataError(
            f"the graph has no names: its entities are ids such as {example!r}",
            where="data.knowledge.text",
            expected="'neighbors', or a table of names",
            fix="set data.knowledge.names to a table of entity_id and name, "
            "or data.knowledge.text to neighbors",
        )
    held = pc.value_counts(table["entity"])
    count = {each["values"].as_py(): each["counts"].as_py() for each in held}
    found: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for row in table.to_pylist():
        by_item = found.setdefault(row["relation"], {})
        by_item.setdefault(row["item_id"], []).append((-count[row["entity"]], row["name"]))
    columns = relation_columns(sorted(found))
    return {
        columns[relation]: [
            [name for _, name in sorted(by_item.get(item, []))[:named]]
            for item in catalogue.ids.to_pylist()
        ]
        for relation, by_item in sorted(found.items())
    }


def _titles(
    catalogue: Catalogue, facts: ItemFacts, named: int, among: Catalogue
) -> list[list[str]]:
    near = facts.neighbours(catalogue.ids, named, among=among.ids)
    ids = among.ids.to_pylist()
    return [
        [among.titles[code] or ids[code] for code in row if code >= 0]
        for row in near.codes.tolist()
    ]
