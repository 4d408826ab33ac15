"""Facts about items and their neighbours, against what a sheet of paper says."""

import math

import numpy as np
import pyarrow as pa
import pytest

from llm_influence.data import knowledge_graph as item_facts
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.errors import DataError, UnknownNameError
from tests import graph

IDS = pa.array([f"i{n}" for n in range(5)])


def test_an_item_has_itself_its_tails_and_its_heads_each_fact_once():
    rows = graph.facts(names={"ann": "Ann Lee"}).table.to_pylist()
    found = {(row["item_id"], row["relation"], row["entity"], row["name"]) for row in rows}
    assert len(found) == len(rows)
    assert found == {
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
    found = ItemFacts.of(graph.graph(), ["film.directed_by"])
    assert found.table["item_id"].to_pylist() == ["i0", "i1"]
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


def test_an_item_without_neighbours_has_none_and_nobody_is_his_own(monkeypatch):
    monkeypatch.setattr(item_facts, "BLOCK", 2)
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


def test_facts_come_back_from_disk(tmp_path):
    graph.facts(names={"ann": "Ann"}).save(tmp_path / "facts.parquet")
    assert ItemFacts.load(tmp_path / "facts.parquet").table.equals(
        graph.facts(names={"ann": "Ann"}).table
    )
