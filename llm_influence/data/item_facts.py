"""What a graph says of each item, and which items are alike by it.

Two items are neighbours by the entities that they share, each weighted by its rarity: with
``idf(e) = log(items / items that have e)``, the similarity of two items is the cosine of their
vectors of idf (Salton and Buckley 1988, doi:10.1016/0306-4573(88)90021-0). A director that two
films share says much; the country that half of all films share says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from llm_influence.data.knowledge import KnowledgeGraph
from llm_influence.errors import DataError, UnknownNameError, choices
from llm_influence.files import write_whole

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
