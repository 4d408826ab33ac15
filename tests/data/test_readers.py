import gzip
import sys

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from llm_influence.data.readers import read_table
from llm_influence.errors import DataError, EmptyLogError, SchemaError

LOG = pa.table(
    {
        "user_id": ["007", "8", "007"],
        "item_id": ["x", "y", "ü"],
        "timestamp": [3, 1, 2],
        "value": [0.5, None, 2.0],
    }
)


def plain(table):
    """Rows with dictionaries decoded, to compare values and not Arrow types."""
    return table.to_pylist()


def test_parquet_file_and_folder(tmp_path):
    (tmp_path / "log").mkdir()
    pa.parquet.write_table(LOG.slice(0, 2), tmp_path / "log" / "0.parquet")
    pa.parquet.write_table(LOG.slice(2), tmp_path / "log" / "1.parquet")
    assert plain(read_table(tmp_path / "log")) == plain(LOG)
    assert plain(read_table(tmp_path / "log" / "1.parquet")) == plain(LOG.slice(2))


def test_csv_keeps_leading_zeros_of_ids(tmp_path):
    pa.csv.write_csv(LOG, tmp_path / "log.csv")
    assert plain(read_table(tmp_path / "log.csv")) == plain(LOG)
    assert plain(read_table(str(tmp_path / "log.csv"))) == plain(LOG)


def test_quoted_line_breaks_are_read_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_influence.data.readers.BLOCK", 64)  # so that blocks end inside cells
    lines = "\n".join(f'{n},"first line\nsecond, line"' for n in range(50))
    (tmp_path / "items.csv").write_text("item_id,text\n" + lines)
    table = read_table(tmp_path / "items.csv")
    assert table["text"].to_pylist() == ["first line\nsecond, line"] * 50


def test_tsv_and_gzip(tmp_path):
    text = "user_id\titem_id\n007\tx\n"
    (tmp_path / "log.tsv").write_text(text)
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("log.tsv", "log.tsv.gz"):
        assert plain(read_table(tmp_path / name)) == [{"user_id": "007", "item_id": "x"}]


def test_json_lines_keep_the_zones_of_times(tmp_path):
    times = ["2020-01-01T10:00:00+0200", "2020-01-01T10:00:00"]
    (tmp_path / "log.jsonl").write_text("\n".join(f'{{"timestamp": "{t}"}}' for t in times))
    assert read_table(tmp_path / "log.jsonl")["timestamp"].to_pylist() == times


def test_json_lines(tmp_path):
    (tmp_path / "log.ndjson").write_text('{"user_id": "007", "timestamp": 1}\n')
    assert plain(read_table(tmp_path / "log.ndjson")) == [{"user_id": "007", "timestamp": 1}]


def test_atomic_files_follow_their_header(tmp_path):
    header = 'user_id:token\trating:float\tnames:token_seq\n007\t4\tsay "a b\n'
    (tmp_path / "x.inter").write_text(header)
    assert plain(read_table(tmp_path / "x.inter")) == [
        {"user_id": "007", "rating": 4.0, "names": 'say "a b'}
    ]
    (tmp_path / "y.user").write_text("user_id\n1\n")
    with pytest.raises(SchemaError, match=r"the header has 'user_id'.*name:type"):
        read_table(tmp_path / "y.user")


def test_frames_and_datasets():
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    assert plain(read_table(LOG)) == plain(LOG)
    frame = LOG.to_pandas().set_axis([5, 6, 7])
    assert read_table(frame).column_names == LOG.column_names
    assert plain(read_table(polars.from_arrow(LOG))) == plain(LOG)
    dataset = datasets.Dataset(LOG)
    assert plain(read_table(dataset)) == plain(LOG)
    assert plain(read_table(dataset.select([2, 0]))) == plain(LOG.take([2, 0]))
    for lazy in (
        datasets.DatasetDict(train=dataset),
        dataset.to_iterable_dataset(),
        polars.from_arrow(LOG).lazy(),
        pandas.Series([1]),
        [1, 2],
    ):
        with pytest.raises(DataError, match="is not a table"):
            read_table(lazy)


def test_only_the_selected_columns_are_read(tmp_path):
    pa.csv.write_csv(LOG, tmp_path / "log.csv")
    pa.parquet.write_table(LOG, tmp_path / "log.parquet")
    for source in (tmp_path / "log.csv", tmp_path / "log.parquet", LOG):
        table = read_table(source, select=lambda names: names[1:2])
        assert table.column_names == ["item_id"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("log.xlsx", b"x", DataError, r"unknown file format '.xlsx'.*\.parquet, \.csv"),
        ("log.csv", b"", EmptyLogError, "the file is empty"),
        ("log.jsonl", b"", EmptyLogError, "the file is empty"),
        ("log.csv", b"a,b\n1\n", DataError, "Expected 2 columns, got 1"),
        ("log.csv", b"a,b\n1,\xe9\n", DataError, "column 'b' is not UTF-8"),
        ("log.jsonl", b'{"a": 1', DataError, "cannot be read"),
        ("log.parquet", b"abc", DataError, "cannot be read"),
    ],
)
def test_bad_files_name_the_path_and_the_fix(tmp_path, name, content, error, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        read_table(path)
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "log.csv")


def test_optional_libraries_are_not_imported():
    import subprocess

    code = (
        "import sys, llm_influence.data\n"
        "print({'pandas', 'polars', 'datasets', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
