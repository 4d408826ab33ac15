"""Public data sets by name: their logs and graphs; matching of film titles."""

import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_influence.config.data import DataConfig
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.public import (
    UNUSED,
    _films,
    load_movielens_100k,
    load_movielens_graph,
    open_data,
    same_films,
)
from llm_influence.errors import ConfigError, DataError
from tests import graph, tiny
from tests.data.helpers import TWO_USERS, events


def test_films_are_found_by_title_and_by_a_part_of_it_in_the_same_year():
    theirs = [
        "Star Wars: Episode IV - A New Hope (1977)",
        "Star Wars: Episode V - The Empire Strikes Back (1980)",
        "Promise, The (La Promesse) (1996)",
        "Heat (1995)",
        "Heat (1986)",
        "Batman: One (1990)",
        "Batman: Two (1990)",
    ]
    ours = {
        "50": "Star Wars (1977)",
        "172": "Empire Strikes Back, The (1980)",
        "1": "Promesse, La (1996)",
        "2": "Heat (1995)",
        "3": "Heat (1995)",  # the same film under two ids
        "4": "Star Wars (1978)",  # another year
        "5": "Batman (1990)",  # two could be meant
        "6": "unkonwn (unkonwn)",
    }
    assert same_films(ours, theirs) == {
        "50": theirs[0],
        "172": theirs[1],
        "1": theirs[2],
        "2": theirs[3],
        "3": theirs[3],
    }


def test_unused_numbers_ascend():
    assert list(UNUSED) == sorted(set(UNUSED))


@pytest.mark.e2e
def test_the_graph_is_about_the_films_that_it_is_linked_to():
    graph, films = load_movielens_graph(), load_movielens_100k().catalogue
    assert (len(graph.triples), len(graph.links)) == (91_631, 1_534)
    near = ItemFacts.of(graph).neighbours(films.ids, 3)

    def like(title):
        codes = near.codes[films.titles.index(title)]
        return {films.titles[code] for code in codes}

    assert {"The Empire Strikes Back (1980)", "Return of the Jedi (1983)"} <= like(
        "Star Wars (1977)"
    )
    assert like("Jaws (1975)") & {"Jaws 2 (1978)", "Jaws 3-D (1983)"}
    linked = {row["entity_id"]: row["item_id"] for row in graph.links.to_pylist()}
    assert films.title_of(linked["m.0dtfn"]) == "Star Wars (1977)"


def test_a_file_by_its_path(tmp_path):
    pa.parquet.write_table(TWO_USERS, tmp_path / "log.parquet")
    pa.parquet.write_table(pa.table({"item_id": ["x", "y", "z"]}), tmp_path / "items.parquet")
    config = DataConfig(source=str(tmp_path / "log.parquet"), items=str(tmp_path / "items.parquet"))
    assert events(open_data(config)) == events(BehaviorLog.read(TWO_USERS))


def test_neither_a_file_nor_a_public_set():
    with pytest.raises(DataError, match=r"'movielens'.*did you mean 'movielens_100k'"):
        open_data(DataConfig(source="movielens"))


def test_a_public_set_brings_its_own_tables():
    with pytest.raises(ConfigError, match=r"data.items is set with the data set"):
        open_data(DataConfig(source="movielens_100k", items="items.csv"))


def test_film_titles_are_written_as_people_say_them():
    raw = pa.table(
        {
            "item_id": ["1", "2", "3", "4", "5"],
            "movie_title": [
                "Birdcage, The",
                "Tin Drum, The (Blechtrommel, Die)",
                "Enfer, L'",
                "unkonwn",
                "Paris, Texas",
            ],
            "release_year": ["1996", "1979", "1994", "unkonwn", "V"],
            "class": ["Comedy", "Drama", "", "unknown", "Drama"],
        }
    )
    assert _films(raw)["title"].to_pylist() == [
        "The Birdcage (1996)",
        "The Tin Drum (Blechtrommel, Die) (1979)",
        "L'Enfer (1994)",
        "unknown",
        "Paris, Texas",
    ]


@pytest.mark.e2e
def test_movielens_100k():
    log = load_movielens_100k()
    assert (len(log), log.num_events, len(log.catalogue)) == (943, 100_000, 1_682)
    assert log.code_names.behaviors == ("rate",)
    assert log.catalogue.title_of("50") == "Star Wars (1977)"
    assert log.catalogue.texts[49] == "Star Wars (1977). Action Adventure Romance Sci-Fi War"
    history = log["196"]
    assert dict(history.user) == {"age": "49", "gender": "M", "occupation": "writer"}
    assert history.values.min() >= 1


def test_the_configuration_enriches_a_log(tmp_path):
    pa.parquet.write_table(tiny.events_table(), tmp_path / "log.parquet")
    pa.parquet.write_table(tiny.items_table(), tmp_path / "items.parquet")
    own = {"source": str(tmp_path / "log.parquet"), "items": str(tmp_path / "items.parquet")}
    plain = open_data(DataConfig(**own))
    for text in ("none", "neighbors"):
        knowledge = {"source": str(graph.write(tmp_path)), "text": text}
        log = open_data(DataConfig.model_validate(own | {"knowledge": knowledge}))
        texts = zip(log.catalogue.texts, plain.catalogue.texts, strict=True)
        changed = [place for place, (one, other) in enumerate(texts) if one != other]
        assert changed == ([] if text == "none" else [0, 1, 2, 3])
        assert (log.items == plain.items).all()


def test_graph_options_without_a_graph_are_refused():
    with pytest.raises(ValueError, match="source, the graph"):
        DataConfig.model_validate({"knowledge": {"text": "neighbors"}})
    with pytest.raises(DataError, match=r"'ml'.*neither a file nor.*'movielens_100k'"):
        open_data(DataConfig.model_validate({"knowledge": {"source": "ml", "text": "neighbors"}}))
