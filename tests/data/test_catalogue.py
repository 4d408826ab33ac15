import pyarrow as pa
import pytest

from llm_influence.data.catalogue import Catalogue
from llm_influence.errors import (
    DataError,
    DuplicateError,
    EmptyLogError,
    OutputError,
    SchemaError,
    UnknownNameError,
)

FILMS = pa.table(
    {
        "genre": ["Action", "", None],
        "item_id": [50, 7, 9],
        "film_title": ["Star Wars", "Kolya", None],
        "tags": [["space", "war"], [], None],
        "year": [1977, 1996, None],
    }
)


def test_defaults_put_the_title_before_the_other_texts():
    films = Catalogue.from_table(FILMS)
    assert films.ids.to_pylist() == ["50", "7", "9"]
    assert films.titles == ["Star Wars", "Kolya", ""]
    assert films.texts == ["Star Wars. Action. space, war", "Kolya", "9"]
    assert len(films) == 3


def test_columns_can_be_chosen():
    films = Catalogue.from_table(FILMS, item_text=["year", "film_title"], item_title="film_title")
    assert films.texts == ["Star Wars. 1977", "Kolya. 1996", "9"]
    with pytest.raises(SchemaError, match=r"unknown column 'gener'.*did you mean 'genre'"):
        Catalogue.from_table(FILMS, item_text=["gener"])


def test_id_column_can_be_mapped():
    table = FILMS.rename_columns({"item_id": "film"})
    assert len(Catalogue.from_table(table, columns={"item_id": "film"})) == 3
    assert len(Catalogue.from_table(FILMS, columns={"item_id": "film"})) == 3
    with pytest.raises(SchemaError, match="column 'item_id' is missing"):
        Catalogue.from_table(table)


def test_index_and_titles():
    films = Catalogue.from_table(FILMS)
    assert films.index(["9", "50"]).tolist() == [2, 0]
    assert films.title_of("50") == "Star Wars"
    assert films.titles_by_id(["7", "9"]) == {"7": "Kolya", "9": ""}
    for ask in (films.title_of, lambda item: films.index(["50", item])):
        with pytest.raises(UnknownNameError, match=r"item '500'.*did you mean '50'"):
            ask("500")


def test_without_a_table_the_id_is_the_text():
    plain = Catalogue.from_ids(pa.array(["a", "b"]))
    assert (plain.titles, plain.texts) == (["", ""], ["a", "b"])


def test_extend_keeps_codes():
    new = Catalogue.from_table(pa.table({"item_id": ["z"], "film_title": ["Zorro"], "plot": ["P"]}))
    both = Catalogue.from_table(FILMS).extend(new)
    assert both.index(["50", "z"]).tolist() == [0, 3]
    assert both.texts[3] == "Zorro. P"
    assert both.table["film_title"].to_pylist()[-1] == "Zorro"
    with pytest.raises(DuplicateError, match="'z' stands in rows 4 and 5"):
        both.extend(new)


def test_an_item_stands_once():
    with pytest.raises(DuplicateError, match="'a' stands in rows 1 and 3"):
        Catalogue.from_table(pa.table({"item_id": ["a", "b", "a"]}))


def test_ids_must_be_text_or_whole_numbers():
    with pytest.raises(SchemaError, match="column 'item_id' has type double"):
        Catalogue.from_table(pa.table({"item_id": [1.0]}))


@pytest.mark.parametrize("missing", ["", None])
def test_ids_must_not_be_missing(missing):
    with pytest.raises(SchemaError, match="row 2, column 'item_id': the cell is empty"):
        Catalogue.from_table(pa.table({"item_id": ["a", missing]}))


def test_an_empty_item_table():
    with pytest.raises(EmptyLogError, match="the table has no rows"):
        Catalogue.from_table(pa.table({"item_id": pa.array([], pa.string())}))


def test_save_and_load(tmp_path):
    films = Catalogue.from_table(FILMS)
    films.save(tmp_path / "deep" / "films.parquet")
    back = Catalogue.load(tmp_path / "deep" / "films.parquet")
    assert back.ids.equals(films.ids)
    assert (back.titles, back.texts) == (films.titles, films.texts)
    assert back.table.equals(films.table)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["films.parquet"]


def test_save_and_load_say_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Catalogue.from_table(FILMS).save(tmp_path / "file" / "films.parquet")
    (tmp_path / "x.jsonl").write_text('{"item_id": "a"}\n')
    with pytest.raises(DataError, match="not a saved catalogue"):
        Catalogue.load(tmp_path / "x.jsonl")
