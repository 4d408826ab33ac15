"""Items and users beside the shards, so that an analysis needs neither the model nor the log."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.files import write_whole
from llm_influence.influence.parquet import SIDE_TABLES


def write_side_tables(log: BehaviorLog, folder: Path) -> None:
    """Write ``items.parquet`` and, where the log knows its users, ``users.parquet``.

    ``items.parquet`` has `item_id`, `title` and every other column of the item table;
    ``users.parquet`` has `user_id` and the features as text.

    Raises:
        OutputError: The folder cannot be written.
    """
    items, users = (folder / name for name in SIDE_TABLES)
    write_whole(items, partial(pq.write_table, _items(log.catalogue)))
    if log.users is None:
        users.unlink(missing_ok=True)  # left by an earlier run with a user table
        return
    features = {name: log.users[name] for name in log.users.column_names if name != "user_id"}
    write_whole(users, partial(pq.write_table, pa.table({"user_id": log.user_ids, **features})))


def _items(catalogue: Catalogue) -> pa.Table:
    titles = pa.array(catalogue.titles, pa.string())
    rest = [name for name in catalogue.table.column_names if name not in ("item_id", "title")]
    columns = {name: catalogue.table[name] for name in rest}
    return pa.table({"item_id": catalogue.ids, "title": titles, **columns})
