"""Amazon Beauty (2014, 5-core) as tables that a configuration can name.

    python -m benchmarks.data.beauty --shared ../shared/data --output runs/prediction/beauty

The files give each user's purchases in order, without times. The times written here are made up
from that order, one day apart: they keep the order and say nothing else.
"""

from __future__ import annotations

import argparse
import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import DataError
from llm_influence.utils import write_whole

SEQUENCES, ITEMS = "amazon_beauty_sequences.txt.gz", "amazon_beauty_items.txt.gz"
FIRST_DAY = int(datetime(2014, 1, 1, tzinfo=UTC).timestamp())
DAY = 86_400


def write_tables(shared: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``events.parquet`` and ``items.parquet`` into a folder and return both paths.

    Raises:
        DataError: A file is missing, or a user has no purchases.
    """
    events, items = folder / "events.parquet", folder / "items.parquet"
    table = read_events(shared / SEQUENCES)
    write_whole(events, lambda part: pq.write_table(table, part))
    catalogue = read_items(shared / ITEMS)
    write_whole(items, lambda part: pq.write_table(catalogue, part))
    return events, items


def read_events(path: Path) -> pa.Table:
    """The purchases: user_id, item_id, timestamp, behavior."""
    users: list[str] = []
    items: list[str] = []
    times: list[int] = []
    for user, rest in _lines(path):
        bought = rest.split()
        if not bought:
            raise DataError(
                f"user {user!r} has no purchases",
                where=str(path),
                expected="a user id and the ids of what was bought",
                fix="fetch the file again",
            )
        users += [user] * len(bought)
        items += bought
        times += [FIRST_DAY + DAY * place for place in range(len(bought))]
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": pa.array(times, pa.int64()),
            "behavior": ["purchase"] * len(users),
        }
    )


def read_items(path: Path) -> pa.Table:
    """The items: item_id, title; one of them has none."""
    ids, titles = zip(*_lines(path), strict=True)
    return pa.table({"item_id": ids, "title": titles})


def _lines(path: Path) -> list[tuple[str, str]]:
    """(first word, the rest) of every line."""
    if not path.exists():
        raise DataError(
            "the file is missing",
            where=str(path),
            expected=f"{SEQUENCES} and {ITEMS}",
            fix="name the folder that holds them with --shared",
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [line.strip().partition(" ")[::2] for line in lines]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/prediction/beauty"))
    options = parser.parse_args()
    print(*write_tables(options.shared, options.output))
