"""CSV and TSV files: no row is lost to a quote sign, and texts stay as they are written."""

import csv
import gzip
import io

import numpy as np
import pytest

from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.errors import DataError

ROWS = [("u", f"t{n}", str(n), cell) for n, cell in enumerate(["shoes", '"red', "x", '"12 inch'])]


def test_a_tsv_file_has_no_quoting(tmp_path):
    path = tmp_path / "log.tsv"
    lines = ["user_id\titem_id\ttimestamp\tquery", *("\t".join(row) for row in ROWS)]
    path.write_text("\n".join(lines) + "\n")
    assert BehaviorLog.read(path).num_events == 4
    assert read_table(path)["query"].to_pylist() == [row[3] for row in ROWS]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], ROWS[1:3]])
@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_a_quote_sign_that_is_not_closed_is_an_error_with_its_line(tmp_path, rows, ending):
    text = "user_id,item_id,timestamp,query\n" + "".join(",".join(row) + "\n" for row in rows)
    path = tmp_path / f"log{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    line = next(n for n, row in enumerate(rows, 2) if row[3].startswith('"'))
    with pytest.raises(DataError, match=f"from line {line} on: a quote sign"):
        BehaviorLog.read(path)


def test_texts_stay_as_they_are_written(tmp_path):
    events, items, users = (tmp_path / f"{name}.csv" for name in ("e", "i", "u"))
    events.write_text("user_id,item_id,timestamp,behavior\n007,01,100,1\n007,1,200,NO\n")
    items.write_text("item_id,title,year\n01,1984,01060\n1,NO,2020-01-01\n")
    users.write_text("user_id,zip\n007,01060\n")
    log = BehaviorLog.read(events, items=items, users=users)
    history = log["007"]
    assert [event.item for event in history.events()] == ["01", "1"]
    assert [event.behavior for event in history.events()] == ["1", "NO"]
    assert dict(history.user) == {"zip": "01060"}
    assert list(log.catalogue.titles) == ["1984", "NO"]
    assert list(log.catalogue.texts) == ["1984. 01060", "NO. 2020-01-01"]


def cell(random):
    """A short text with every sign that has a meaning in CSV."""
    signs = [*list("ab,\"\n 0.;'"), "\t", "é", "\r\n"]
    return "".join(random.choice(signs, size=random.integers(0, 6)))


@pytest.mark.parametrize("seed", range(3))
def test_generated_files_are_read_as_pythons_csv_module_reads_them(tmp_path, seed):
    """100 files a seed: either all cells are equal, or the file is refused."""
    random, path = np.random.default_rng(seed), tmp_path / "file.csv"
    for _ in range(100):
        if random.random() < 0.5:  # well formed
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["a", "b"])
            writer.writerows([(f"x{cell(random)}", cell(random)) for _ in range(4)])
            text = out.getvalue()
        else:
            text = "a,b\n" + "".join(f"x{cell(random)},{cell(random)}\n" for _ in range(4))
        path.write_text(text, encoding="utf-8", newline="")
        try:
            expected = [
                row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row
            ]
        except csv.Error:
            expected = None
        try:
            table = read_table(path, numbers=())
        except DataError:
            continue
        assert expected is not None, text
        found = list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
        assert found == [tuple(row) for row in expected[1:]], text
