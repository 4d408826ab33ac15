"""Influence tables, larger than memory, as one view with derived columns.

DuckDB reads the Parquet files; nothing is loaded but what a question needs. The rows of an
explanation stand together, player 0, 1, 2... So the row at which it begins, in its file, is its
number, and no key of strings has to be compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from llm_influence.analysis.bins import SESSION_GAP, quoted
from llm_influence.analysis.columns import (
    COLUMNS,
    Column,
    numbers,
    read_side_tables,
    select,
    side_columns,
)
from llm_influence.errors import ConfigError, DataError, OutputError, choices
from llm_influence.influence.table_files import check_file, table_files
from llm_influence.utils import require

BATCH = 1 << 17
"""Rows that `InfluenceView.batches` gives at a time."""

_ROWS = """
CREATE VIEW influence_rows AS
SELECT *, (file_index::BIGINT << 40) + file_row_number - player AS explanation
FROM read_parquet([{files}]) WHERE {where}
"""
_EXPLANATIONS = """
CREATE TABLE explanations AS
SELECT explanation, any_value(user_id) AS user_id,
    CASE any_value(target) WHEN 'item' THEN any_value(target_id)
        WHEN 'contrast' THEN split_part(any_value(target_id), ' over ', 1) END AS chosen,
    CASE any_value(target) WHEN 'contrast' THEN split_part(any_value(target_id), ' over ', 2) END
        AS other,
    max(position) + 1 AS events, max(timestamp) AS last_time,
    list(DISTINCT position) FILTER (gap_seconds > {session}) AS session_starts,
    bool_or(field IS NOT NULL OR position IS NULL) AS parts,
    count(*) = max(player) + 1 AND min(player) = 0 AND min(position) = 0 AS whole
FROM influence_rows GROUP BY explanation
"""
_USERS = """
CREATE TABLE user_codes AS
SELECT user_id, row_number() OVER (ORDER BY min(explanation)) - 1 AS user_code
FROM explanations GROUP BY user_id
"""
_CODED = """
CREATE TABLE coded_explanations AS
SELECT x.* EXCLUDE (user_id, whole), c.user_code::INTEGER AS user_code
FROM explanations AS x JOIN user_codes AS c USING (user_id)
"""


@dataclass(frozen=True, slots=True)
class Resources:
    """What an analysis may use.

    Attributes:
        memory: Of DuckDB, as "2GB"; beyond it, rows go to ``temp``.
        temp: Folder for what does not fit; default: the system's own place for such files.
        threads: Of DuckDB; default: all cores.
    """

    memory: str = "2GB"
    temp: Path | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which explanations of the tables are analysed; None takes all.

    Attributes:
        method: Attribution method.
        target: Kind of target: ``item``, ``contrast``, ``behavior``, ``slate``.
        run: Where the explanations come from.
    """

    method: str | None = None
    target: str | None = None
    run: str | None = None

    def conditions(self) -> dict[str, str]:
        """What is asked for, by column."""
        asked = {"method": self.method, "target": self.target, "run": self.run}
        return {name: value for name, value in asked.items() if value is not None}


class InfluenceView:
    """Influence tables opened for examples; use it in a ``with`` statement.

    Attributes:
        columns: Every column that can be asked for, by name: `COLUMNS` and those of the items and
            users (``item:genres``, ``match:genres``, ``user:age``).
        method: The one attribution method of the rows.
        units: ``target`` or ``share``, see the influence table.
        explanations: How many there are.
        events: Events explained, rows of the view.
        users: How many users.
        sources: The files and folders that were opened.
        parts: The rows are of parts of events; the view adds them up.
        sources: Files and folders as they were given.
        folder: For temporary files; it goes with the view.
    """

    def __init__(
        self,
        tables: Path | str | Sequence[Path | str],
        *,
        items: Path | None = None,
        users: Path | None = None,
        choice: Choice | None = None,
        resources: Resources | None = None,
    ) -> None:
        """Check the tables and count their explanations; one pass over a few columns.

        Args:
            tables: An influence table, a folder of them, or several of either.
            items: The item table; default: ``items.parquet`` beside the tables, if there.
            users: The user table; default: ``users.parquet`` beside the tables, if there.
            choice: Which explanations to take.
            resources: Memory, temporary folder and threads.

        Raises:
            DataError: Nothing is there or left, explanations are incomplete, or several
                attribution methods stand in the tables.
            SchemaError: A column is missing or of another type, or the schema has another version.
            ConfigError: DuckDB is not installed, or ``resources`` are not what it understands.
        """
        sources = [tables] if isinstance(tables, (str, Path)) else list(tables)
        files = table_files(sources)
        for file in files:
            check_file(file)
        item_table, user_table = read_side_tables([Path(s) for s in sources], items, users)
        self.sources = tuple(Path(place) for place in sources)
        self._where = ", ".join(str(place) for place in sources)
        self._duckdb = require("duckdb", extra="analysis", purpose="analysis of influence tables")
        self._folder, self._connection = self._connect(resources or Resources())
        self.folder = Path(self._folder.name)
        try:
            self.execute("SET enable_progress_bar = false")  # bars would stand in logs
            self.load("items", item_table)
            self.load("users", user_table)
            self._define(files, choice or Choice())
        except BaseException:
            self.close()
            raise
        self.columns: dict[str, Column] = {
            **COLUMNS,
            **side_columns(numbers(item_table), numbers(user_table)),
        }

    def __enter__(self) -> InfluenceView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory and temporary files."""
        self._connection.close()
        self._folder.cleanup()

    def select(self, *names: str) -> str:
        """A query, to be put into another in brackets: these columns of every event.

        Raises:
            DataError: A name is no column of the view.
        """
        for name in names:
            if name not in self.columns:
                raise DataError(
                    f"no column {name!r}",
                    where=self._where,
                    expected=choices(self.columns, name),
                    fix="correct the name, or pass the item or user table that has it",
                )
        return select({name: self.columns[name] for name in names}, parts=self.parts)

    def execute(self, statement: str) -> None:
        """Run a statement that gives no rows, such as CREATE TABLE.

        Raises:
            ConfigError: The memory does not suffice.
            OutputError: The temporary folder is full or cannot be written.
        """
        with self._translated():
            self._connection.execute(statement)

    def load(self, name: str, table: pa.Table) -> None:
        """Put a table of our own beside the view's, under a name that is new.

        Raises:
            ConfigError, OutputError: As in `execute`.
        """
        self._connection.register("loading", table)
        self.execute(f"CREATE TABLE {name} AS SELECT * FROM loading")
        self._connection.unregister("loading")

    def table(self, query: str) -> pa.Table:
        """The answer of a query that fits into memory.

        Raises:
            ConfigError, OutputError: As in `execute`.
        """
        with self._translated():
            return self._connection.sql(query).to_arrow_table()

    def batches(self, query: str, size: int = BATCH) -> Iterator[pa.Table]:
        """The answer of a query in pieces of ``size`` rows, in its own order.

        Raises:
            ConfigError, OutputError: As in `execute`.
        """
        with self._translated():
            waiting: list[pa.Table] = []
            for batch in self._connection.sql(query).to_arrow_reader(size):
                waiting.append(pa.Table.from_batches([batch]))
                while sum(map(len, waiting)) >= size:
                    whole = pa.concat_tables(waiting)
                    yield whole.slice(0, size)
                    waiting = [whole.slice(size)]
            rest = pa.concat_tables(waiting) if waiting else None
            if rest is not None and len(rest):
                yield rest

    def require_users(self, least: int, purpose: str) -> None:
        """Refuse tables of too few users.

        Raises:
            DataError: There are fewer than ``least``.
        """
        if self.users < least:
            raise DataError(
                f"explanations of {self.users} user{'s' if self.users > 1 else ''}",
                where=self._where,
                expected=f"at least {least} users: {purpose}",
                fix="explain more users",
            )

    def _connect(self, resources: Resources) -> tuple[tempfile.TemporaryDirectory[str], Any]:
        try:
            folder = tempfile.TemporaryDirectory(prefix="analysis-", dir=resources.temp)
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror})",
                where=str(resources.temp or tempfile.gettempdir()),
                expected="a folder with space for temporary files",
                fix="name another with --temp",
            ) from error
        settings: dict[str, str | int | bool] = {
            "memory_limit": resources.memory,
            "temp_directory": str(Path(folder.name) / "spilled"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        if resources.threads is not None:
            settings["threads"] = resources.threads
        try:
            return folder, self._duckdb.connect(f"{folder.name}/analysis.duckdb", config=settings)
        except self._duckdb.Error as error:
            folder.cleanup()
            raise ConfigError(
                f"DuckDB refuses memory {resources.memory!r}, threads {resources.threads}",
                where="resources of the analysis",
                expected="memory as '2GB', and at least one thread",
                fix=f"correct them ({error})",
            ) from error

    def _define(self, files: list[Path], choice: Choice) -> None:
        """Make ``influence_rows`` and ``explanations``, and check what stands in them."""
        asked = choice.conditions()
        where = " AND ".join(f"{name} = {quoted(value)}" for name, value in asked.items())
        listed = ", ".join(quoted(str(file)) for file in files)
        self.execute(_ROWS.format(files=listed, where=where or "TRUE"))
        self.method, self.units = self._method(asked)
        self.execute(_EXPLANATIONS.format(session=SESSION_GAP))
        (counts,) = self.table(
            "SELECT count(*) AS explanations, sum(events)::BIGINT AS events, "
            "count(DISTINCT user_id) AS users, bool_or(parts) AS parts, bool_and(whole) AS whole "
            "FROM explanations"
        ).to_pylist()
        if not counts["whole"]:
            raise DataError(
                "rows of an explanation are missing or out of order",
                where=self._where,
                expected="players 0, 1, 2... of each explanation, one row after another",
                fix="keep explanations whole and in order when filtering",
            )
        self.explanations: int = counts["explanations"]
        self.events: int = counts["events"]
        self.users: int = counts["users"]
        self.parts: bool = counts["parts"]
        self.execute(_USERS)
        self.execute(_CODED)
        self.execute("DROP TABLE explanations")
        self.execute("ALTER TABLE coded_explanations RENAME TO explanations")

    def _method(self, asked: dict[str, str]) -> tuple[str, str]:
        found = self.table("SELECT DISTINCT method, units FROM influence_rows ORDER BY ALL")
        methods = found["method"].to_pylist()
        if not methods:
            raise DataError(
                "no row with " + ", ".join(f"{name} {value!r}" for name, value in asked.items())
                if asked
                else "the tables have no rows",
                where=self._where,
                expected="explanations of at least one user",
                fix="ask for a method, target and run that the tables hold",
            )
        if len(methods) > 1:
            raise DataError(
                f"several attribution methods: {', '.join(sorted(set(methods)))}",
                where=self._where,
                expected="one: scores of different methods have different meanings",
                fix=f"choose one, as in --method {methods[0]}",
            )
        return methods[0], found["units"][0].as_py()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"the memory does not suffice ({error})",
                where="analysis of influence tables",
                expected="room for the explanations' own facts",
                fix="allow more with --memory",
            ) from error
        except self._duckdb.IOException as error:
            raise OutputError(
                f"temporary files cannot be written ({error})",
                where=self._folder.name,
                expected="space for what does not fit into memory",
                fix="name another place with --temp",
            ) from error
