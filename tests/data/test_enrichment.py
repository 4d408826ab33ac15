"""What the graph adds to texts and columns."""

import pyarrow as pa
import pytest

from llm_influence.config.data import DataConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import enriched, relation_columns
from llm_influence.datasets.sources import open_data
from llm_influence.errors import DataError, SchemaError
from tests import graph, tiny

FILMS = Catalogue.from_table(
    pa.table({"item_id": [f"i{n}" for n in range(4)], "title": ["A", "B", "C", ""]})
)


def test_neighbours_are_named_by_title():
    found = enriched(FILMS, graph.facts(), "neighbors", named=2)
    assert found.texts == ["A. like: C, B", "B. like: A, i3", "C. like: A", "i3. like: A, B"]
    assert found.table["like"].to_pylist()[2] == ["A"]
    assert found.titles == FILMS.titles
    assert found.ids is FILMS.ids


def test_new_items_are_like_old_ones_alone():
    old, new = FILMS.take([1, 3]), FILMS.take([0, 2])
    found = enriched(new, graph.facts(), "neighbors", among=old)
    assert found.texts == ["A. like: B", "C"]  # a country that all old items have says nothing


def test_names_make_a_column_a_relation_the_most_shared_first():
    facts = graph.facts(names={"ann": "Ann Lee", "land": "Land", "e0": "not said of itself"})
    found = enriched(FILMS, facts, "names", named=1)
    assert found.table.column_names == ["item_id", "title", "country", "directed_by", "sequel"]
    assert found.texts[0] == "A. country: Land. directed by: Ann Lee"
    assert found.texts[2] == "C. sequel: not said of itself"
    assert found.table["directed_by"].to_pylist() == [["Ann Lee"], ["Ann Lee"], [], []]


def test_relations_that_end_alike_keep_their_whole_names():
    assert relation_columns(["film.genre", "book.genre", "film.actor"]) == {
        "film.genre": "film.genre",
        "book.genre": "book.genre",
        "film.actor": "actor",
    }


def test_ids_are_no_words():
    with pytest.raises(DataError, match=r"no names: its entities are ids such as 'land'"):
        enriched(FILMS, graph.facts(), "names")


def test_a_column_is_not_written_over():
    films = Catalogue.from_table(FILMS.table.append_column("like", pa.array([""] * 4)))
    with pytest.raises(SchemaError, match="'like' already"):
        enriched(films, graph.facts(), "neighbors")


def test_the_configuration_enriches_a_log(tmp_path):
    pa.parquet.write_table(tiny.events_table(), tmp_path / "log.parquet")
    pa.parquet.write_table(tiny.items_table(), tmp_path / "items.parquet")
    own = {"source": str(tmp_path / "log.parquet"), "items": str(tmp_path / "items.parquet")}
    plain = open_data(DataConfig(**own))
    for text in ("none", "neighbors"):
        knowledge = {"source": str(graph.write(tmp_path)), "text": text}
        log = open_data(DataConfig.model_validate(own | {"knowledge": knowledge}))
        told = [a != b for a, b in zip(log.catalogue.texts, plain.catalogue.texts, strict=True)]
        assert [n for n, each in enumerate(told) if each] == (
            [] if text == "none" else [0, 1, 2, 3]
        )
        assert (log.items == plain.items).all()


def test_options_about_no_graph_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source, the graph"):
        DataConfig.model_validate({"knowledge": {"text": "neighbors"}})
    with pytest.raises(DataError, match=r"'ml'.*neither a file nor.*'movielens_100k'"):
        open_data(DataConfig.model_validate({"knowledge": {"source": "ml", "text": "neighbors"}}))
