"""Folders of Parquet shards: long work on any number of processes, which resumes after a kill.

A plan says what the folder is to hold and is written before the first shard. A later run with the
same plan continues; one with another plan is refused, so that shards of two runs never mix. Shards
are cut by row number alone and written whole or not at all, so any number of processes and kills
gives the same rows. Each shard holds the digest of its plan and its row numbers: a shard of another
plan is refused even if the plan was lost, and a damaged one is made again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm import tqdm

from llm_influence.batch.lock import locked
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import InfluenceError, OutputError, out_of_range
from llm_influence.influence.table_files import ERRORS, SIDE_TABLES
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.fingerprints import digest
from llm_influence.utils import write_text, write_whole

OnShard = Callable[[Path], object]
"""Called with the path of each shard that this process has written."""

Failures = Mapping[int, tuple[str, InfluenceError]]
"""Rows that could not be computed, each with its user and error."""

ERROR_COLUMNS = ("user_id", "error", "message", "fix")
_KEY = b"llm_influence.shard"


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock in the main process, from before the plan to the manifest.

        Raises:
            OutputError: Another job writes into the folder, or it cannot be written.
        """
        state = PartialState(cpu=on_cpu())
        if not state.is_main_process:
            yield
            return
        with locked(self.folder):
            yield

    def fill(
        self,
        compute: Callable[[Sequence[int]], tuple[pa.Table, Failures]],
        *,
        name: str,
        prepare: Callable[[], object] | None = None,
        on_shard: OnShard | None = None,
        progress: bool = True,
    ) -> int:
        """Compute and write the missing shards, each process its own.

        Rows that failed in an earlier call are tried again; where one succeeds now, its shard is
        made again.

        Args:
            compute: The table of these rows in order, and the rows that cannot be computed.
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
        failed = {n: set(self._failures(n)) for n, path in enumerate(self.paths) if path.exists()}
        todo = [n for n in range(len(self.paths)) if n not in failed or failed[n]]
        state.wait_for_everyone()  # nobody writes before everyone has listed the missing shards
        computed = 0
        own = todo[state.process_index :: state.num_processes]
        shown = progress and state.is_main_process
        for number, rows in self._with_bar(own, name=name, shown=shown):
            again = sorted(failed.get(number, ()))
            if again and len(compute(again)[1]) == len(again):
                continue
            table, failures = compute(rows)
            if len(failures) == len(rows) and not computed and not failed:
                _, error = failures[rows[0]]  # no user at all: the fault is not the user's
                raise error
            self._write(number, rows, table, failures)
            computed += len(rows)
            if on_shard is not None:
                on_shard(self.paths[number])
        state.wait_for_everyone()
        return computed

    def _rows(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, self.rows))

    def _with_bar(
        self, numbers: Sequence[int], *, name: str, shown: bool
    ) -> Iterator[tuple[int, range]]:
        """These shards and their rows, beside a progress bar over rows."""
        spans = [self._rows(number) for number in numbers]
        total = sum(map(len, spans))
        with tqdm(total=total, unit="user", desc=name, disable=not shown) as bar:
            for number, rows in zip(numbers, spans, strict=True):
                yield number, rows
                bar.update(len(rows))

    def _write(self, number: int, rows: range, table: pa.Table, failures: Failures) -> None:
        facts = {
            "plan": self._fingerprint,
            "rows": [rows.start, rows.stop],
            "failed": {
                str(row): dict(
                    zip(
                        ERROR_COLUMNS,
                        (user, type(error).__name__, str(error), error.fix),
                        strict=True,
                    )
                )
                for row, (user, error) in failures.items()
            },
        }
        metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(facts)}
        write = partial(
            pq.write_table,
            table.replace_schema_metadata(metadata),
            compression="zstd",
            write_page_checksum=True,
        )
        write_whole(self.paths[number], write)

    @property
    def _fingerprint(self) -> str:
        return digest(_json(self.plan))

    def _failures(self, number: int) -> dict[int, dict[str, str]]:
        """The rows of a shard that could not be computed."""
        failed: dict[str, dict[str, str]] = _facts(self.paths[number])["failed"]
        return {int(row): error for row, error in failed.items()}

    def _claim(self) -> None:
        """Write the plan, or check that it is the one in the folder; sweep up unfinished files.

        A plan without any shard, of a run that failed at once, is replaced.
        """
        path, text = self.folder / "plan.json", _json(self.plan)
        shards = sorted(self.folder.glob("part-*.parquet"))
        if shards and path.exists():
            self._check_plan(path, text)
        damaged = [shard for shard in shards if not self._is_whole(shard)]
        if path.exists() or not damaged:  # without a plan nobody knows whose the damaged ones are
            for shard in damaged:
                warnings.warn(f"{shard} is damaged and made again", stacklevel=4)
                shard.unlink()
        else:
            raise self._another(f"no plan.json, and {damaged[0].name} is damaged")
        if damaged or len(shards) < len(self.paths):
            (self.folder / "manifest.json").unlink(missing_ok=True)  # it is not finished
        write_text(path, text)
        for unfinished in self.folder.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)

    def _check_plan(self, path: Path, text: str) -> None:
        ours = json.loads(text)
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        except (OSError, TypeError, ValueError) as error:
            raise self._another(f"plan.json cannot be read: {error}") from error
        if changed:
            pairs = [f"{key}: {theirs.get(key)!r}, now {ours.get(key)!r}" for key in changed]
            raise self._another(", ".join(pairs))

    def _is_whole(self, path: Path) -> bool:
        """Whether a shard can be read to its end.

        Raises:
            OutputError: It is whole, but of another plan or other rows.
        """
        try:
            facts = _facts(path)
            pq.ParquetFile(path, page_checksum_verification=True).read()
        except (pa.ArrowException, OSError, ValueError):
            return False
        number = int(path.stem.removeprefix("part-")) if path in self.paths else None
        rows = None if number is None else [self._rows(number).start, self._rows(number).stop]
        if facts["plan"] != self._fingerprint or facts["rows"] != rows:
            raise self._another(f"{path.name} is of another plan or other rows")
        return True

    def _another(self, what: str) -> OutputError:
        return OutputError(
            f"the folder holds another run ({what})",
            where=str(self.folder),
            expected="the same model, log, method and options, or a new folder",
            fix="choose another --out, or repeat the command that started this folder",
        )

    def write_manifest(self, **facts: object) -> tuple[int, int]:
        """Write ``manifest.json``, whose presence means that every shard is there.

        It holds the plan, the number of table rows of every shard, the number of failed rows, and
        the given facts. Failed rows are listed in ``errors.parquet``. On several processes, only
        the main one writes.

        Returns:
            The number of table rows in all shards, and of rows that could not be computed.
        """
        counts = {path.name: pq.read_metadata(path).num_rows for path in self.paths}
        failures = [
            error for n in range(len(self.paths)) for _, error in sorted(self._failures(n).items())
        ]
        state = PartialState(cpu=on_cpu())
        if state.is_main_process:
            self._write_errors(failures)
            manifest = {
                "schema": 1,
                "plan": self.plan,
                "shards": [{"file": name, "rows": count} for name, count in counts.items()],
                "rows": sum(counts.values()),
                "failed": len(failures),
                **facts,
            }
            write_text(self.folder / "manifest.json", _json(manifest))
        state.wait_for_everyone()
        return sum(counts.values()), len(failures)

    def _write_errors(self, failures: Sequence[Mapping[str, str]]) -> None:
        path = self.folder / ERRORS
        if not failures:
            path.unlink(missing_ok=True)
            return
        columns = {name: [error[name] for error in failures] for name in ERROR_COLUMNS}
        write_whole(path, partial(pq.write_table, pa.table(columns)))


def _facts(path: Path) -> dict[str, Any]:
    """What a shard says about itself; empty texts for a file that says nothing."""
    metadata = pq.read_schema(path).metadata or {}
    facts: dict[str, Any] = {"plan": "", "rows": [], "failed": {}}
    return facts | json.loads(metadata.get(_KEY, b"{}"))


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
