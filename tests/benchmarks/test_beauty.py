import gzip

import pytest

from benchmarks.data import beauty
from llm_influence.config.data import DataConfig
from llm_influence.datasets.public import open_data
from llm_influence.errors import DataError


def write(folder, sequences, items="A red lipstick\nB\nC soap\n"):
    for name, text in ((beauty.SEQUENCES, sequences), (beauty.ITEMS, items)):
        with gzip.open(folder / name, "wt") as file:
            file.write(text)


def test_sequences_become_histories_in_their_order(tmp_path):
    write(tmp_path, "u2 C A B\nu1 B C\n")
    events, items = beauty.write_tables(tmp_path, tmp_path / "out")

    log = open_data(DataConfig(source=str(events), items=str(items)))

    bought = {history.user_id: log.catalogue.ids.take(history.items).to_pylist() for history in log}
    assert bought == {"u1": ["B", "C"], "u2": ["C", "A", "B"]}
    assert log.catalogue.titles == ["red lipstick", "", "soap"]
    assert log.code_names.behaviors == ("purchase",)


def test_a_user_without_purchases_is_refused(tmp_path):
    write(tmp_path, "u1 A\nu2\n")
    with pytest.raises(DataError, match="'u2' has no purchases"):
        beauty.write_tables(tmp_path, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=beauty.SEQUENCES):
        beauty.write_tables(tmp_path, tmp_path)
