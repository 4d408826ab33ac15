"""Reading a knowledge graph, the attributes and neighbours of items, and enriched texts."""

import math

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.data import knowledge_graph
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import (
    ItemFacts,
    KnowledgeGraph,
    enriched,
    relation_columns,
)
from llm_influence.errors import (
    DataError,
    DuplicateError,
    EmptyLogError,
    MissingFileError,
    SchemaError,
    UnknownNameError,
)
from tests import graph

IDS = pa.array([f"i{n}" for n in range(5)])
FILMS = Catalogue.from_table(
    pa.table({"item_id": [f"i{n}" for n in range(4)], "title": ["A", "B", "C", ""]})
)


def test_a_pair_of_files_is_the_graph_in_them(tmp_path):
    read = KnowledgeGraph.read(graph.write(tmp_path))
    assert read.triples.equals(graph.graph().triples)
    assert read.links.equals(graph.graph().links)
    assert read.names == {}


def test_names_are_a_third_table(tmp_path):
    names = pa.table({"entity_id": ["ann", "bob"], "name": ["Ann Lee", "Bob"]})
    read = KnowledgeGraph.read(graph.write(tmp_path), names=names)
    assert read.names == {"ann": "Ann Lee", "bob": "Bob"}


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        ("kg", "head_id:token\trel:token\ttail_id:token\na\tb\tc\n", SchemaError, "'relation_id'"),
        ("kg", "head_id\trelation_id\ttail_id\na\tb\tc\n", SchemaError, "header has 'head_id'"),
        (
            "kg",
            "head_id:token\trelation_id:token\ttail_id:token\na\tb\tc\nd\t\tf\n",
            SchemaError,
            r"tiny.kg, row 2, column 'relation_id'",
        ),
        (
            "kg",
            "head_id:token\trelation_id:token\ttail_id:token\na\tb\tc\nd\te\n",
            DataError,
            "tiny.kg: cannot be read.*3 columns, got 2",
        ),
        ("kg", "head_id:token\trelation_id:token\ttail_id:token\n", EmptyLogError, "no rows"),
        (
            "link",
            "item_id:token\tentity_id:token\ni1\te1\ni1\te2\n",
            DuplicateError,
            "rows 1 and 2",
        ),
        ("link", "item_id:token\tentity_id:token\ni1\tx\n", DataError, "none of its 1 entities"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(tmp_path, file, text, error, message):
    path = graph.write(tmp_path)
    (tmp_path / f"tiny.{file}").write_text(text)
    with pytest.raises(error, match=message):
        KnowledgeGraph.read(path)


def test_missing_links_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"tiny.link: no such file"):
        KnowledgeGraph.read(graph.write(tmp_path, links=False))
    with pytest.raises(DataError, match="no links"):
        KnowledgeGraph.read(graph.graph().triples)


def test_an_item_has_itself_its_tails_and_its_heads_each_fact_once():
    rows = graph.facts(names={"ann": "Ann Lee"}).table.to_pylist()
    facts = {(row["item_id"], row["relation"], row["entity"], row["name"]) for row in rows}
    assert len(facts) == len(rows)
    assert facts == {
        *((f"i{n}", "is", f"e{n}", "") for n in (0, 1, 2, 3, 7)),
        ("i0", "film.directed_by", "ann", "Ann Lee"),
        ("i1", "film.directed_by", "ann", "Ann Lee"),  # and not director.film again
        ("i2", "actor.film", "bob", ""),
        ("i2", "film.sequel", "e0", ""),
        ("i0", "film.sequel", "e2", ""),
        *((f"i{n}", "film.country", "land", "") for n in (0, 1, 3)),
        ("i7", "film.country", "else", ""),
    }


def test_relations_can_be_chosen_and_must_be_there():
    facts = ItemFacts.of(graph.graph(), ["film.directed_by"])
    assert facts.table["item_id"].to_pylist() == ["i0", "i1"]
    with pytest.raises(UnknownNameError, match=r"'film.director'.*did you mean 'film.directed_by'"):
        ItemFacts.of(graph.graph(), ["film.director"])


def test_similarity_is_the_cosine_of_idf():
    """Of five items two have ann, three land; e0 and e2, film and sequel, two; e1, e3, bob one."""
    idf = {"two": math.log(5 / 2), "three": math.log(5 / 3), "one": math.log(5)}
    lengths = [
        math.hypot(idf["two"], idf["two"], idf["two"], idf["three"]),  # e0, e2, ann, land
        math.hypot(idf["one"], idf["two"], idf["three"]),  # e1, ann, land
        math.hypot(idf["two"], idf["two"], idf["one"]),  # e0, e2, bob
        math.hypot(idf["one"], idf["three"]),  # e3, land
    ]
    cosines = {
        1: (idf["two"] ** 2 + idf["three"] ** 2) / lengths[0] / lengths[1],
        2: 2 * idf["two"] ** 2 / lengths[0] / lengths[2],
        3: idf["three"] ** 2 / lengths[0] / lengths[3],
    }
    order = sorted(cosines, key=lambda n: -cosines[n])
    near = graph.facts().neighbours(IDS, 3)
    assert near.codes[0].tolist() == order
    expected = np.array([cosines[n] for n in order]) / sum(cosines.values())
    np.testing.assert_allclose(near.weights[0], expected, rtol=1e-6)
    two = graph.facts().neighbours(IDS, 2)
    np.testing.assert_allclose(two.weights[0], expected[:2] / expected[:2].sum(), rtol=1e-6)


def test_no_item_is_its_own_neighbour_and_some_have_none(monkeypatch):
    monkeypatch.setattr(knowledge_graph, "BLOCK", 2)
    near = graph.facts().neighbours(IDS, 10)
    assert near.codes.shape == near.weights.shape == (5, 10)
    assert near.codes[4].tolist() == [-1] * 10
    assert near.weights[4].sum() == 0
    assert all(row not in codes for row, codes in enumerate(near.codes.tolist()))
    np.testing.assert_allclose(near.weights[:4].sum(axis=1), 1, rtol=1e-6)


def test_new_items_find_old_ones_and_an_entity_is_as_rare_as_among_them():
    old = pa.array(["i1", "i3", "i4"])
    near = graph.facts().neighbours(pa.array(["i0", "i7"]), 2, among=old)
    assert near.codes.tolist() == [[0, 1], [-1, -1]]
    ann, land = math.log(3 / 1), math.log(3 / 2)
    first = (ann**2 + land**2) / math.hypot(math.log(3), ann, land)  # e1, ann, land
    second = land**2 / math.hypot(math.log(3), land)
    np.testing.assert_allclose(near.weights[0, 0], first / (first + second), rtol=1e-6)


def test_a_graph_about_other_items_is_refused():
    with pytest.raises(DataError, match="knows none of the 2 items"):
        graph.facts().neighbours(pa.array(["a", "b"]), 2)


def test_saved_facts_are_loaded(tmp_path):
    graph.facts(names={"ann": "Ann"}).save(tmp_path / "facts.parquet")
    assert ItemFacts.load(tmp_path / "facts.parquet").table.equals(
        graph.facts(names={"ann": "Ann"}).table
    )


def test_neighbours_are_named_by_title():
    films = enriched(FILMS, graph.facts(), "neighbors", named=2)
    assert films.texts == ["A. like: C, B", "B. like: A, i3", "C. like: A", "i3. like: A, B"]
    assert films.table["like"].to_pylist()[2] == ["A"]
    assert films.titles == FILMS.titles
    assert films.ids is FILMS.ids


def test_new_items_are_like_old_ones_alone():
    old, new = FILMS.take([1, 3]), FILMS.take([0, 2])
    films = enriched(new, graph.facts(), "neighbors", among=old)
    assert films.texts == ["A. like: B", "C"]  # a country that all old items have says nothing


def test_names_make_one_column_for_each_relation_the_most_frequent_first():
    facts = graph.facts(names={"ann": "Ann Lee", "land": "Land", "e0": "not said of itself"})
    films = enriched(FILMS, facts, "names", named=1)
    assert films.table.column_names == ["item_id", "title", "country", "directed_by", "sequel"]
    assert films.texts[0] == "A. country: Land. directed by: Ann Lee"
    assert films.texts[2] == "C. sequel: not said of itself"
    assert films.table["directed_by"].to_pylist() == [["Ann Lee"], ["Ann Lee"], [], []]


def test_relations_that_end_alike_keep_their_whole_names():
    assert relation_columns(["film.genre", "book.genre", "film.actor"]) == {
        "film.genre": "film.genre",
        "book.genre": "book.genre",
        "film.actor": "actor",
    }


def test_a_graph_without_names_gives_no_names():
    with pytest.raises(DataError, match=r"no names: its entities are ids such as 'land'"):
        enriched(FILMS, graph.facts(), "names")


def test_an_existing_column_is_not_overwritten():
    films = Catalogue.from_table(FILMS.table.append_column("like", pa.array([""] * 4)))
    with pytest.raises(SchemaError, match="'like' already"):
        enriched(films, graph.facts(), "neighbors")
