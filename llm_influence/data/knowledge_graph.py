"""A knowledge graph of the items: triples, item attributes, neighbours and enriched item texts.

Files are those of RecBole, tab-separated: ``.kg`` with head_id, relation_id and tail_id, ``.link``
with item_id and entity_id. Such a graph (KB4Rec, Zhao et al. 2019, arXiv:1807.11141, links films to
Freebase) often has ids alone; the names of entities are an optional third table.

Items are neighbours if they share entities, weighted by rarity. With ``idf(e) = log(items / items
that have e)``, the similarity of two items is the cosine of their idf vectors (Salton and Buckley
1988, doi:10.1016/0306-4573(88)90021-0). A shared director counts much, a common country little.

An item's text can state its attributes, for the language model. With names of entities these are
the words ("directed by: Quentin Tarantino"). Without names the text lists the titles of the
item's neighbours: "like: Jackie Brown (1997), Four Rooms (1995)".
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
from llm_influence.data.schema import check_distinct, check_rows, key_texts
from llm_influence.errors import DataError, SchemaError, UnknownNameError, choices, unknown
from llm_influence.utils import write_whole

TRIPLE = ("head_id", "relation_id", "tail_id")
LINK = ("item_id", "entity_id")
NAME = ("entity_id", "name")
COLUMNS = ("item_id", "relation", "entity", "name")
ITSELF = "is"
"""Relation of an item to its own entity: an item shares it with those that have it, as a sequel."""
LIKE = "like"
"""Column with the titles of an item's neighbours."""
BLOCK = 256
"""Number of items whose similarities are computed at a time; changes only the memory."""


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts about entities, and the entities of items.

    Attributes:
        triples: (T rows) `TRIPLE`, all text.
        links: (L rows) `LINK`, all text; each item once.
        names: Entity id to name, for the entities that have one; often empty.
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
            DuplicateError: An item, or the entity of a name, is repeated.
            EmptyLogError: A table has no rows.
            DataError: A file is missing or cannot be read, or no linked entity is in the graph.
        """
        if links is None and not isinstance(triples, (str, Path)):
            expected = "a table of item_id and entity_id for triples that are not a file"
            where = describe(triples)
            raise DataError("no links", where=where, expected=expected, fix="pass links")
        links = Path(str(triples)).with_suffix(".link") if links is None else links
        facts, linked = _columns(triples, TRIPLE), _columns(links, LINK)
        where = describe(links)
        check_distinct(linked["item_id"].combine_chunks(), name="item_id", where=where)
        entities = pa.chunked_array(facts["head_id"].chunks + facts["tail_id"].chunks)
        if not pc.any(pc.is_in(linked["entity_id"], value_set=entities.unique())).as_py():
            found = f"none of its {len(linked)} entities is in the graph"
            expected = f"entities of {describe(triples)}"
            fix = "pass the two files of the same graph"
            raise DataError(found, where=where, expected=expected, fix=fix)
        return cls(facts, linked, {} if names is None else _names(names))


def _columns(source: object, names: tuple[str, ...]) -> pa.Table:
    """Some columns as text, without empty cells."""
    where = describe(source)
    table = read_table(source, where=where, text=names)
    for name in names:
        if name not in table.column_names:
            found = f"column {name!r} is missing"
            expected = f"the columns {', '.join(names)}; it has {choices(table.column_names, name)}"
            fix = "rename the file's own column in its header"
            raise SchemaError(found, where=where, expected=expected, fix=fix)
    check_rows(table, where)
    return pa.table({name: key_texts(table[name], name=name, where=where) for name in names})


def _names(source: object) -> dict[str, str]:
    table, where = _columns(source, NAME), describe(source)
    check_distinct(table["entity_id"].combine_chunks(), name="entity_id", where=where)
    return dict(zip(table["entity_id"].to_pylist(), table["name"].to_pylist(), strict=True))


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """The items most like each of N items."""

    codes: npt.NDArray[np.int64]
    """(N, K) places in the searched items, -1 where there are fewer neighbours."""
    weights: npt.NDArray[np.float32]
    """(N, K) cosines scaled to sum 1; all 0 for an item without neighbours."""


@dataclass(frozen=True, eq=False)
class ItemFacts:
    """The entities of items, one row for each fact.

    Attributes:
        table: (F rows) `COLUMNS`, all text: an item, its relation to an entity, the entity, and the
            entity's name ("" if unknown). Sorted; each row once.
    """

    table: pa.Table

    @classmethod
    def of(cls, graph: KnowledgeGraph, relations: Sequence[str] = ()) -> ItemFacts:
        """The facts about the items of a graph.

        An item's entities are the tails of its triples, the heads of triples that end at it, and
        its own entity (`ITSELF`). A fact in both directions counts once, by the relation that
        starts at the item.

        Args:
            graph: The graph.
            relations: Only facts with these relations; default: all.

        Raises:
            UnknownNameError: The graph has no such relation.
        """
        links = graph.links
        known = pc.unique(graph.triples["relation_id"]).to_pylist()
        for name in relations:
            if name not in known:
                where = "data.knowledge.relations"
                raise unknown(UnknownNameError, "relation", name, known, where=where)
        own = pa.table(
            [links["item_id"], pa.array([ITSELF] * len(links)), links["entity_id"]], COLUMNS[:3]
        )
        starting = _joined(graph, "head_id", "tail_id")
        ending = _joined(graph, "tail_id", "head_id")
        inverse = pc.is_in(_pairs(ending), value_set=_pairs(starting))
        table = pa.concat_tables([own, starting, ending.filter(pc.invert(inverse))])
        if relations:
            table = table.filter(pc.is_in(table["relation"], value_set=pa.array(relations)))
        table = table.group_by(list(COLUMNS[:3])).aggregate([])
        table = table.sort_by([(name, "ascending") for name in COLUMNS[:3]])
        names = [graph.names.get(entity, "") for entity in table["entity"].to_pylist()]
        return cls(table.append_column("name", pa.array(names, pa.string())))

    @cached_property
    def entities(self) -> pa.StringArray:
        """(E,) the distinct entities, sorted."""
        return pc.unique(self.table["entity"]).sort()

    @property
    def relations(self) -> list[str]:
        """The relations, sorted."""
        return sorted(pc.unique(self.table["relation"]).to_pylist())

    def incidence(self, ids: pa.StringArray, relations: Sequence[str] = ()) -> sparse.csr_array:
        """(I, E) ones where an item has an entity by one of ``relations`` (default: all)."""
        table = self.table
        if relations:
            table = table.filter(pc.is_in(table["relation"], value_set=pa.array(relations)))
        table = table.filter(pc.is_in(table["item_id"], value_set=ids))
        rows = pc.index_in(table["item_id"], value_set=ids).to_numpy()
        columns = pc.index_in(table["entity"], value_set=self.entities).to_numpy()
        shape = (len(ids), len(self.entities))
        matrix = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        matrix.data[:] = 1  # an entity by two relations counts once
        return matrix

    def directions(self, ids: pa.StringArray, *, among: pa.StringArray) -> sparse.csr_array:
        """(N, E) idf vectors of the (N,) items, at length one; zeros without facts.

        Entities of none or of all of the (I,) items ``among`` have weight 0.

        Raises:
            DataError: The graph has no fact about ``among``.
        """
        held = self.incidence(among)
        if not held.nnz:
            found = f"the graph knows none of the {len(among)} items"
            expected = "facts about the items of the log"
            fix = "link the item ids of the log to the entities of the graph"
            raise DataError(found, where="data.knowledge", expected=expected, fix=fix)
        having = held.sum(axis=0)
        rarity = np.log(len(among) / np.maximum(having, 1)) * (having > 0)
        return _unit_rows(self.incidence(ids) * rarity)

    def neighbours(
        self, ids: pa.StringArray, count: int, *, among: pa.StringArray | None = None
    ) -> Neighbours:
        """The most similar items of each of the (N,) items; ties in the order of ``among``.

        Args:
            ids: Items, in the graph or not.
            count: Largest number of neighbours of an item, without itself.
            among: (I,) items to search and to count rarities in; default: ``ids``.

        Raises:
            DataError: The graph has no fact about ``among``.
        """
        among = ids if among is None else among
        searched, queries = (self.directions(items, among=among) for items in (among, ids))
        itself = pc.index_in(ids, value_set=among).fill_null(-1).to_numpy(zero_copy_only=False)
        codes = np.full((len(ids), count), -1, np.int64)
        weights = np.zeros((len(ids), count), np.float32)
        for start in range(0, len(ids), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(ids)))
            cosines = (queries[rows] @ searched.T).toarray()
            inside = itself[rows] >= 0
            cosines[inside, itself[rows][inside]] = 0
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
            found, expected = "not saved facts about items", f"the columns {', '.join(COLUMNS)}"
            fix = "pass a file written by ItemFacts.save"
            raise DataError(found, where=str(path), expected=expected, fix=fix)
        return cls(table)


def _joined(graph: KnowledgeGraph, item: str, entity: str) -> pa.Table:
    """Item, relation and entity of the triples with an item's entity at the end ``item``."""
    joined = graph.triples.join(graph.links, item, "entity_id", join_type="inner")
    return pa.table([joined["item_id"], joined["relation_id"], joined[entity]], COLUMNS[:3])


def _pairs(facts: pa.Table) -> pa.ChunkedArray:
    """(F,) item and entity as one text."""
    return pc.binary_join_element_wise(facts["item_id"], facts["entity"], "\x1f")


def _unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    """The rows of a matrix at length one; rows of zeros stay."""
    lengths = np.sqrt((matrix * matrix).sum(axis=1))
    scale = 1 / np.where(lengths > 0, lengths, 1)
    return sparse.csr_array(matrix.multiply(scale[:, None]))


def enriched(
    catalogue: Catalogue,
    facts: ItemFacts,
    kind: Literal["names", "neighbors"],
    *,
    named: int = 3,
    among: Catalogue | None = None,
) -> Catalogue:
    """The same items with columns and texts that state their attributes in the graph.

    Args:
        catalogue: The items. Those without facts stay as they are.
        facts: The attributes of the items.
        kind: ``names``: one column for each relation with the names of its entities, the most
            frequent first. ``neighbors``: the column `LIKE` with the titles of similar items.
        named: Largest number of names of a relation, or of titles.
        among: Items to search for neighbours; default: ``catalogue``. For new items, pass the
            old ones.
    """
    if kind == "names":
        columns = _names_enrichment(catalogue, facts, named)
    else:
        among = among or catalogue
        near, ids = facts.neighbours(catalogue.ids, named, among=among.ids), among.ids.to_pylist()
        rows = ([code for code in row if code >= 0] for row in near.codes.tolist())
        columns = {LIKE: [[among.titles[code] or ids[code] for code in row] for row in rows]}
    table, texts = catalogue.table, list(catalogue.texts)
    for name, cells in columns.items():
        if name in table.column_names:
            found = f"the items have a column {name!r} already"
            expected, fix = "no such column in the item table", "rename the item table's column"
            raise SchemaError(found, where="data.knowledge.text", expected=expected, fix=fix)
        table = table.append_column(name, pa.array(cells, pa.list_(pa.string())))
        words = name.replace("_", " ")
        for place, cell in enumerate(cells):
            if cell:
                texts[place] += f". {words}: {', '.join(cell)}"
    return Catalogue(catalogue.ids, list(catalogue.titles), texts, table)


def relation_columns(relations: Sequence[str]) -> Mapping[str, str]:
    """Relation to the name of its column: its last part, or the whole if two end alike."""
    last = [relation.rpartition(".")[2] for relation in relations]
    pairs = zip(relations, last, strict=True)
    return {whole: short if last.count(short) == 1 else whole for whole, short in pairs}


def _names_enrichment(
    catalogue: Catalogue, facts: ItemFacts, named: int
) -> dict[str, list[list[str]]]:
    table = facts.table.filter(pc.not_equal(facts.table["name"], ""))
    table = table.filter(pc.not_equal(table["relation"], ITSELF))
    if not len(table):
        example = facts.table["entity"][0].as_py()
        found = f"the graph has no names: its entities are ids such as {example!r}"
        expected = "'neighbors', or a table of names"
        fix = "set data.knowledge.names, or data.knowledge.text to neighbors"
        raise DataError(found, where="data.knowledge.text", expected=expected, fix=fix)
    counts = pc.value_counts(table["entity"])
    count = {pair["values"].as_py(): pair["counts"].as_py() for pair in counts}
    by_relation: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for row in table.to_pylist():
        by_item = by_relation.setdefault(row["relation"], {})
        by_item.setdefault(row["item_id"], []).append((-count[row["entity"]], row["name"]))
    columns = relation_columns(sorted(by_relation))
    return {
        columns[relation]: [
            [name for _, name in sorted(by_item.get(item, []))[:named]]
            for item in catalogue.ids.to_pylist()
        ]
        for relation, by_item in sorted(by_relation.items())
    }
