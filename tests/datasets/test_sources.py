import pyarrow as pa
import pyarrow.parquet
import pytest

from llm_influence.config.data import DataConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.movielens import _films, load_movielens_100k
from llm_influence.datasets.sources import open_data
from llm_influence.errors import ConfigError, DataError
from tests import graph, tiny
from tests.data.helpers import TWO_USERS, events


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
