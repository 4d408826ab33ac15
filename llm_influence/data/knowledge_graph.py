"""A knowledge graph of the items: triples, item attributes, and item texts that state them.

A knowledge graph: triples about entities, and which items are which of them.

Files are those of RecBole, tab-separated: ``.kg`` with head_id, relation_id and tail_id, ``.link``
with item_id and entity_id. Such a graph (KB4Rec, Zhao et al. 2019, arXiv:1807.11141, links films to
Freebase) often has ids alone; what they are called is a third table, which may not be there.

What a graph says of each item, and which items are alike by it.

Two items are neighbours by the entities that they share, each weighted by its rarity: with
``idf(e) = log(items / items that have e)``, the similarity of two items is the cosine of their
vectors of idf (Salton and Buckley 1988, doi:10.1016/0306-4573(88)90021-0). A director that two
films share says much; the country that half of all films share says little.

Items whose text also says what a graph knows of them: words that a language model can read.

Where entities have names these are the words ("directed by: Quentin Tarantino"). Ids such as
``m.0bln8`` are no words. What a graph without names can say is which items an item is like: the
titles of those that share its rarest entities, "like: Jackie Brown (1997), Four Rooms (1995)".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.readers import describe, read_table
from llm_influence.data.schema import (
    as_text,
    check_distinct,
    check_id_type,
    check_no_nulls,
    empty_cell,
)
from llm_influence.errors import DataError, EmptyLogError, SchemaError, UnknownNameError, choices
from llm_influence.utils import write_whole

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


COLUMNS = ("item_id", "relation", "entity", "name")
ITSELF = "is"
"""Relation of an item to its own entity: a sequel has it among its entities, and so shares it."""
BLOCK = 256
"""Items whose similarities are computed at a time; affects memory alone."""


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """The items most like each of N items.

    Attributes:
        codes: (N, K) places among the items that they were sought among, -1 where there are fewer.
        weights: (N, K) float32, cosines made to sum to 1; all 0 for an item without neighbours.
    """

    codes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemFacts:
    """The entities of items.

    Attributes:
        table: (F rows) `COLUMNS`, all text: an item, its relation to an entity, the entity, what it
            is called ("" where nothing is known). Sorted; each row once.
    """

    table: pa.Table

    @classmethod
    def of(cls, graph: KnowledgeGraph, relations: Sequence[str] = ()) -> ItemFacts:
        """The facts about the items of a graph.

        An item's entities are the tails of its triples and the heads of those that end at it. What
        a graph says in both directions counts once, by the relation that starts at the item. Its
        own entity is one of them (`ITSELF`).

        Args:
            graph: The graph.
            relations: Facts by these relations alone; default: by all.

        Raises:
            UnknownNameError: The graph has no such relation.
        """
        links = graph.links
        known = pc.unique(graph.triples["relation_id"]).to_pylist()
        for name in relations:
            if name not in known:
                raise UnknownNameError(
                    f"the graph has no relation {name!r}",
                    where="data.knowledge.relations",
                    expected=choices(known, name),
                    fix="correct the name",
                )
        own = pa.table(
            [links["item_id"], pa.array([ITSELF] * len(links)), links["entity_id"]], COLUMNS[:3]
        )
        starting = _joined(graph, "head_id", "tail_id")
        ending = _joined(graph, "tail_id", "head_id")
        inverse = pc.is_in(_pairs(ending), value_set=_pairs(starting))
        found = pa.concat_tables([own, starting, ending.filter(pc.invert(inverse))])
        if relations:
            found = found.filter(pc.is_in(found["relation"], value_set=pa.array(relations)))
        found = found.group_by(list(COLUMNS[:3])).aggregate([])
        found = found.sort_by([(name, "ascending") for name in COLUMNS[:3]])
        names = [graph.names.get(entity, "") for entity in found["entity"].to_pylist()]
        return cls(found.append_column("name", pa.array(names, pa.string())))

    @cached_property
    def entities(self) -> pa.StringArray:
        """(E,) the entities, each once, sorted."""
        return pc.unique(self.table["entity"]).sort()

    @property
    def relations(self) -> list[str]:
        """The relations, sorted."""
        return sorted(pc.unique(self.table["relation"]).to_pylist())

    def incidence(self, ids: pa.StringArray, relations: Sequence[str] = ()) -> sparse.csr_array:
        """(I, E) ones where one of the (I,) items has an entity, by any of some relations."""
        table = self.table
        if relations:
            table = table.filter(pc.is_in(table["relation"], value_set=pa.array(relations)))
        rows = pc.index_in(table["item_id"], value_set=ids)
        held = pc.is_valid(rows)
        places = (
            rows.filter(held).to_numpy(),
            pc.index_in(table["entity"].filter(held), value_set=self.entities).to_numpy(),
        )
        ones = np.ones(len(places[0]))
        found = sparse.csr_array((ones, places), shape=(len(ids), len(self.entities)))
        found.data[:] = 1  # an entity by two relations is one entity
        return found

    def directions(self, ids: pa.StringArray, *, among: pa.StringArray) -> sparse.csr_array:
        """(N, E) vectors of idf of the (N,) items, at length one; zeros where nothing is known.

        Entities that none of the (I,) items ``among`` has, or all of them, are left out.

        Raises:
            DataError: The graph knows none of ``among``.
        """
        held = self.incidence(among)
        if not held.nnz:
            raise DataError(
                f"the graph knows none of the {len(among)} items",
                where="data.knowledge",
                expected="facts about the items of the log",
                fix="link the log's own item ids to the graph's entities",
            )
        having = held.sum(axis=0)
        rarity = np.log(len(among) / np.maximum(having, 1)) * (having > 0)
        return _unit_rows(self.incidence(ids) * rarity)

    def neighbours(
        self, ids: pa.StringArray, count: int, *, among: pa.StringArray | None = None
    ) -> Neighbours:
        """The items most like each of the (N,) items; equal ones in the order of ``among``.

        Args:
            ids: Items, known to the graph or not.
            count: Neighbours of an item, at most; itself is none.
            among: (I,) items that they are sought among, and that an entity's rarity is counted
                in; default: ``ids``.

        Raises:
            DataError: The graph knows none of ``among``.
        """
        among = ids if among is None else among
        known, asked = (self.directions(each, among=among) for each in (among, ids))
        itself = pc.index_in(ids, value_set=among).fill_null(-1).to_numpy(zero_copy_only=False)
        codes = np.full((len(ids), count), -1, np.int64)
        weights = np.zeros((len(ids), count), np.float32)
        for start in range(0, len(ids), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(ids)))
            cosines = (asked[rows] @ known.T).toarray()
            met = itself[rows] >= 0
            cosines[met, itself[rows][met]] = 0
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
            near = np.take_along_axis(cosines, best, axis=1)
            codes[rows, : best.shape[1]] = np.where(near > 0, best, -1)
            total = near.sum(axis=1, keepdims=True)
            weights[rows, : best.shape[1]] = near / np.where(total > 0, total, 1)
        return Neighbours(codes, weights)

    def save(self, path: Path) -> None:
        """Write the facts as one Parquet file.

        Raises:
            OutputError: The file cannot be written.
        """
        write_whole(path, lambda part: pq.write_table(self.table, part))

    @classmethod
    def load(cls, path: Path) -> ItemFacts:
        """Read what `save` wrote.

        Raises:
            DataError: The file is another one.
        """
        table = pq.read_table(path)
        if tuple(table.column_names) != COLUMNS:
            raise DataError(
                "not saved facts about items",
                where=str(path),
                expected=f"the columns {', '.join(COLUMNS)}",
                fix="pass a file written by ItemFacts.save",
            )
        return cls(table)


def _joined(graph: KnowledgeGraph, item: str, entity: str) -> pa.Table:
    """Item, relation and entity of the triples whose end ``item`` is an item's entity."""
    found = graph.triples.join(graph.links, item, "entity_id", join_type="inner")
    return pa.table([found["item_id"], found["relation_id"], found[entity]], COLUMNS[:3])


def _pairs(facts: pa.Table) -> pa.ChunkedArray:
    """(F,) item and entity as one text."""
    return pc.binary_join_element_wise(facts["item_id"], facts["entity"], "\x1f")


def _unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """The rows of a matrix at length one; rows of zeros stay."""
    lengths = np.sqrt((matrix * matrix).sum(axis=1))
    scale = 1 / np.where(lengths > 0, lengths, 1)
    return sparse.csr_array(matrix.multiply(scale[:, None]))


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
        columns = _names_enrichment(catalogue, facts, named)
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


def _names_enrichment(
    catalogue: Catalogue, facts: ItemFacts, named: int
) -> dict[str, list[list[str]]]:
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
