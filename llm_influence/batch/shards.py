"""Folders of Parquet shards: long work on any number of processes, which resumes after a kill.

A plan says what the folder is to hold and is written before the first shard. A later run with the
same plan continues; one with another plan is refused, so that shards of two runs never mix. Shards
are cut by row number alone and written whole or not at all, so any number of processes and kills
gives the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm import tqdm

from llm_influence.data.log import BehaviorLog
from llm_influence.errors import OutputError, out_of_range
from llm_influence.influence.table_files import SIDE_TABLES
from llm_influence.modeling.backbone import on_cpu
from llm_influence.utils import write_text, write_whole

OnShard = Callable[[Path], object]
"""Called with the path of each shard that this process has written."""


@dataclass(frozen=True)
class Shards:
    """A folder of ``part-00000.parquet`` and on, with its plan.

    Attributes:
        folder: The folder.
        plan: What the folder is to hold, ready for JSON.
        rows: Number of users or examples.
        size: Rows of one shard, at least 1: what a kill may lose.

    Raises:
        OutputError: ``size`` is below 1.
    """

    folder: Path
    plan: Mapping[str, object]
    rows: int
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise out_of_range(OutputError, "shard_size", self.size, expected="at least 1")

    @property
    def paths(self) -> list[Path]:
        """The shards in order, whether or not they are there."""
        count = -(-self.rows // self.size)
        return [self.folder / f"part-{number:05d}.parquet" for number in range(count)]

    def fill(
        self,
        compute: Callable[[range], pa.Table],
        *,
        name: str,
        prepare: Callable[[], object] | None = None,
        on_shard: OnShard | None = None,
        progress: bool = True,
    ) -> int:
        """Compute and write the missing shards, each process its own.

        Args:
            compute: The table of these rows.
            name: Name of the work, beside the progress bar.
            prepare: Called once, on the main process, after the plan is accepted.
            on_shard: Called after each shard.
            progress: Whether to show a progress bar.

        Returns:
            The number of rows that this process computed.

        Raises:
            OutputError: The folder cannot be written, or holds another run.
        """
        state = PartialState(cpu=on_cpu())
        if state.is_main_process:
            self._claim()
            if prepare is not None:
                prepare()
        state.wait_for_everyone()
        missing = [number for number, path in enumerate(self.paths) if not path.exists()]
        state.wait_for_everyone()  # nobody writes before everyone has listed the missing shards
        computed = 0
        for rows, path in self._with_bar(
            missing[state.process_index :: state.num_processes],
            name=name,
            shown=progress and state.is_main_process,
        ):
            table = compute(rows)
            write_whole(path, partial(pq.write_table, table, compression="zstd"))
            computed += len(rows)
            if on_shard is not None:
                on_shard(path)
        state.wait_for_everyone()
        return computed

    def _with_bar(
        self, numbers: Sequence[int], *, name: str, shown: bool
    ) -> Iterator[tuple[range, Path]]:
        """The rows and the path of these shards, beside a progress bar over rows."""
        paths = self.paths
        starts = [number * self.size for number in numbers]
        spans = [range(start, min(start + self.size, self.rows)) for start in starts]
        total = sum(map(len, spans))
        with tqdm(total=total, unit="user", desc=name, disable=not shown) as bar:
            for number, rows in zip(numbers, spans, strict=True):
                yield rows, paths[number]
                bar.update(len(rows))

    def _claim(self) -> None:
        """Write the plan, or check that it is the one in the folder; sweep up unfinished files.

        A plan without any shard, of a run that failed at once, is replaced.
        """
        path, text = self.folder / "plan.json", _json(self.plan)
        if not path.exists() or not any(self.folder.glob("part-*.parquet")):
            write_text(path, text)
            return
        theirs, ours = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = sorted(key for key in ours if ours[key] != theirs.get(key))
        if changed:
            shown = ", ".join(f"{key}: {theirs.get(key)!r}, now {ours[key]!r}" for key in changed)
            raise OutputError(
                f"the folder holds another run ({shown})",
                where=str(self.folder),
                expected="the same model, log, method and options, or a new folder",
                fix="choose another --out, or repeat the command that started this folder",
            )
        for unfinished in self.folder.glob(".part-*.tmp"):
            unfinished.unlink()

    def write_manifest(self) -> int:
        """Write ``manifest.json``, whose presence means that every shard is there.

        It holds the plan and the number of table rows of every shard. On several processes, only
        the main one writes.

        Returns:
            The number of table rows in all shards.
        """
        counts = {path.name: pq.read_metadata(path).num_rows for path in self.paths}
        state = PartialState(cpu=on_cpu())
        if state.is_main_process:
            manifest = {
                "schema": 1,
                "plan": self.plan,
                "shards": [{"file": name, "rows": count} for name, count in counts.items()],
                "rows": sum(counts.values()),
            }
            write_text(self.folder / "manifest.json", _json(manifest))
        state.wait_for_everyone()
        return sum(counts.values())


def write_side_tables(log: BehaviorLog, folder: Path) -> None:
    """Write items and users, so that an analysis needs neither the model nor the log.

    ``items.parquet`` has `item_id`, `title` and every other column of the item table;
    ``users.parquet``, where the log has a user table, `user_id` and the features as text.

    Raises:
        OutputError: The folder cannot be written.
    """
    items_path, users_path = (folder / name for name in SIDE_TABLES)
    catalogue = log.catalogue
    items = {"item_id": catalogue.ids, "title": pa.array(catalogue.titles, pa.string())}
    rest = {name: catalogue.table[name] for name in catalogue.table.column_names}
    write_whole(items_path, partial(pq.write_table, pa.table(items | (rest | items))))
    if log.users is None:
        users_path.unlink(missing_ok=True)  # of an earlier run with a user table
        return
    features = {name: log.users[name] for name in log.users.column_names if name != "user_id"}
    users = pa.table({"user_id": log.user_ids, **features})
    write_whole(users_path, partial(pq.write_table, users))


def _json(tree: Mapping[str, object]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False, default=str) + "\n"
