"""`InfluenceView`: influence tables, larger than memory, as one table of events.

DuckDB reads the Parquet files and loads only what a query needs. The rows of an explanation
follow each other, player 0, 1, 2... The number of its first row in its file therefore identifies
an explanation, and no text keys need to be compared.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_influence.analysis.columns import (
    COLUMNS,
    MATCHES,
    SESSION_GAP,
    Column,
    read_side_tables,
    select,
    side_columns,
    sql_text,
)
from llm_influence.config.analyses import Choice, Resources
from llm_influence.errors import ConfigError, DataError, OutputError, choices, unknown
from llm_influence.influence.batch_state import notes_on
from llm_influence.influence.table_files import check_file, table_files
from llm_influence.utils import require

BATCH = 1 << 17  # rows that `InfluenceView.batches` gives at a time

CHOSEN = {
    "measures": "share of what was chosen",
    "warning": "the targets were chosen or came next, so scores measure the share of what was "
    "chosen, not strength: old or weak events are linked to what was chosen more rarely; for "
    "strengths and their half-lives, explain with --target drawn:4,16",
}
"""Facts of an analysis of targets that were not drawn."""

_ROWS = """
CREATE VIEW influence_rows AS
SELECT *, (file_index::BIGINT << 40) + file_row_number - player AS explanation
"""
_EXPLANATIONS = """
CREATE TABLE all_explanations AS
SELECT explanation, any_value(user_id) AS user_id,
    CASE WHEN any_value(target) IN ('item', 'drawn') THEN any_value(target_id)
        WHEN any_value(target) = 'contrast' THEN split_part(any_value(target_id), ' over ', 1)
        END AS chosen,
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
FROM all_explanations GROUP BY user_id
"""
_CODED = """
CREATE TABLE explanations AS
SELECT x.* EXCLUDE (user_id, whole), c.user_code::INTEGER AS user_code
FROM all_explanations AS x JOIN user_codes AS c USING (user_id)
"""


class InfluenceView:
    """Influence tables opened for analysis; use it in a ``with`` statement.

    Attributes:
        columns: Every column by name: `COLUMNS`, and those of the item and user tables
            (``item:genres``, ``match:genres``, ``user:age``).
        method: The attribution method of the rows.
        drawn: True if the targets were drawn without regard to the histories.
        units: ``target`` or ``share``, see the influence table.
        explanations: Number of explanations.
        events: Number of explained events, the rows of the view.
        users: Number of users.
        parts: True if the rows are parts of events; the view sums them per event.
        sources: The given files and folders.
        folder: Folder for temporary files, removed by `close`.
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
        """Check the tables and count their explanations, in one pass over a few columns.

        Args:
            tables: An influence table, a folder of them, or several of either.
            items: The item table. Default: ``items.parquet`` beside the tables, if it exists.
            users: The user table. Default: ``users.parquet`` beside the tables, if it exists.
            choice: The explanations to analyse. Default: all.
            resources: Memory, temporary folder and threads.

        Raises:
            DataError: There is no explanation, an explanation is incomplete, or the tables hold
                several attribution methods.
            SchemaError: A column is missing or of another type, or the schema has another version.
            ConfigError: DuckDB is not installed, or rejects ``resources``.
        """
        sources = [tables] if isinstance(tables, (str, Path)) else list(tables)
        files = table_files(sources)
        for file in files:
            check_file(file)
        self.sources = tuple(Path(place) for place in sources)
        item_table, user_table = read_side_tables(self.sources, items, users)
        self._where = ", ".join(str(place) for place in sources)
        self._duckdb = require("duckdb", extra="analysis", purpose="analysis of influence tables")
        self._folder, self._connection = self._connect(resources or Resources())
        self.folder = Path(self._folder.name)
        try:
            self.execute("SET enable_progress_bar = false")
            self.load("items", item_table)
            self.load("users", user_table)
            self._define(files, choice or Choice())
        except BaseException:
            self.close()
            raise
        self.columns: dict[str, Column] = {**COLUMNS, **side_columns(item_table, user_table)}

    def __enter__(self) -> InfluenceView:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory and delete the temporary files."""
        self._connection.close()
        self._folder.cleanup()

    def select(self, *names: str) -> str:
        """A query that gives these columns of every event, to be used as a subquery."""
        for name in names:
            if name not in self.columns:
                fix = "correct the name, or pass the item or user table that has the column"
                raise unknown(DataError, "column", name, self.columns, where=self._where, fix=fix)
        return select({name: self.columns[name] for name in names}, parts=self.parts)

    def sign_of(self, match: str | None) -> str:
        """SQL of the factor that turns an event's score into support for the target's item.

        By a column ``match:...``, called ``side`` in the query, the factor is 1 for events that
        match the target's item, -1 for those that match the other item of a contrast, and null for
        other events. Without ``match`` it is 1 for every event.
        """
        if match is None:
            return "1"
        self.select(match)
        if self.columns[match].levels != MATCHES:
            raise ConfigError(
                f"{match!r} does not say which item an event matches",
                where="--match",
                expected=choices([name for name in self.columns if name.startswith("match:")]),
                fix="name a column match:NAME, where NAME is a column of the item table",
            )
        return "CASE side WHEN 'target' THEN 1 WHEN 'other' THEN -1 END"

    def execute(self, statement: str) -> None:
        """Run a statement without a result, such as CREATE TABLE."""
        with self._translated():
            self._connection.execute(statement)

    def load(self, name: str, table: pa.Table) -> None:
        """Add a table under a new name; raises the errors of `execute`."""
        self._connection.register("loading", table)
        self.execute(f"CREATE TABLE {name} AS SELECT * FROM loading")
        self._connection.unregister("loading")

    def table(self, query: str) -> pa.Table:
        """The result of a query, in memory; raises the errors of `execute`."""
        with self._translated():
            return self._connection.sql(query).to_arrow_table()

    def batches(self, query: str, size: int = BATCH) -> Iterator[pa.Table]:
        """The result of a query in order, ``size`` rows at a time; raises as `execute`."""
        with self._translated():
            waiting: list[pa.Table] = []
            for batch in self._connection.sql(query).to_arrow_reader(size):
                waiting.append(pa.Table.from_batches([batch]))
                while sum(map(len, waiting)) >= size:
                    rows = pa.concat_tables(waiting)
                    yield rows.slice(0, size)
                    waiting = [rows.slice(size)]
            if sum(map(len, waiting)):
                yield pa.concat_tables(waiting)

    def grouped_batches(self, query: str, key: str) -> Iterator[pa.Table]:
        """As `batches`, but rows with the same ``key``, which follow each other, stay together."""
        rest: pa.Table | None = None
        for table in self.batches(query):
            rows = table if rest is None else pa.concat_tables([rest, table])
            keys = rows[key].to_numpy()
            cut = int(np.flatnonzero(keys != keys[-1]).max(initial=-1)) + 1
            if cut:
                yield rows.slice(0, cut)
            rest = rows.slice(cut)
        if rest is not None:
            yield rest

    def facts(self, options: Any) -> dict[str, Any]:  # noqa: ANN401
        """What was analysed, for the head of an analysis: sizes, method and options."""
        names = ("method", "units", "events", "explanations", "users")
        measures = {"measures": "strength"} if self.drawn else CHOSEN
        facts = {name: getattr(self, name) for name in names}
        notes = notes_on(self.sources)
        incomplete = {"incomplete": "; ".join(notes)} if notes else {}
        return {**facts, **measures, **incomplete, "options": asdict(options)}

    def require_users(self, least: int, purpose: str) -> None:
        """Check the number of users."""
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
                fix="name another folder with --temp",
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
                f"DuckDB rejects memory {resources.memory!r}, threads {resources.threads}",
                where="resources of the analysis",
                expected="memory like '2GB', and at least one thread",
                fix=f"correct --memory or --threads ({error})",
            ) from error

    def _define(self, files: list[Path], choice: Choice) -> None:
        """Create ``influence_rows``, ``explanations`` and ``user_codes``, and check them."""
        chosen = {name: value for name, value in asdict(choice).items() if value is not None}
        where = " AND ".join(f"{name} = {sql_text(value)}" for name, value in chosen.items())
        # Escaped: DuckDB would expand the brackets and stars of a name as a pattern.
        listed = ", ".join(sql_text(glob.escape(str(file))) for file in files)
        self.execute(
            f"{_ROWS} FROM read_parquet([{listed}], hive_partitioning=false) "
            f"WHERE {where or 'TRUE'}"
        )
        self.method, self.units = self._method(chosen)
        self.execute(_EXPLANATIONS.format(session=SESSION_GAP))
        (counts,) = self.table(
            "SELECT count(*) AS explanations, sum(events)::BIGINT AS events, "
            "count(DISTINCT user_id) AS users, bool_or(parts) AS parts, bool_and(whole) AS whole "
            "FROM all_explanations"
        ).to_pylist()
        if not counts["whole"]:
            raise DataError(
                "rows of an explanation are missing or out of order",
                where=self._where,
                expected="players 0, 1, 2... of each explanation, one row after another",
                fix="keep explanations complete and in order when you filter tables",
            )
        (together,) = self.table("SELECT bool_or(in_block) AS it FROM influence_rows")["it"]
        if together.as_py():
            raise DataError(
                f"events that {self.method} scored together",
                where=self._where,
                expected="a score of its own for each event",
                fix="explain with --method leave_one_out, or shapley",
            )
        (kinds,) = self.table(
            "SELECT bool_and(target = 'drawn') AS every, bool_or(target = 'drawn') AS some "
            "FROM influence_rows"
        ).to_pylist()
        if kinds["every"] != kinds["some"]:
            raise DataError(
                "drawn and chosen targets together",
                where=self._where,
                expected="either: the first measure strength, the others the share of the chosen",
                fix="choose --target drawn, or another kind",
            )
        self.drawn: bool = kinds["every"]
        self.explanations: int = counts["explanations"]
        self.events: int = counts["events"]
        self.users: int = counts["users"]
        self.parts: bool = counts["parts"]
        for statement in (_USERS, _CODED, "DROP TABLE all_explanations"):
            self.execute(statement)

    def _method(self, chosen: dict[str, str]) -> tuple[str, str]:
        rows = self.table("SELECT DISTINCT method, units FROM influence_rows ORDER BY ALL")
        methods = rows["method"].to_pylist()
        if not methods:
            wanted = ", ".join(f"{name} {value!r}" for name, value in chosen.items())
            raise DataError(
                f"no row with {wanted}" if chosen else "the tables have no rows",
                where=self._where,
                expected="explanations of at least one user",
                fix="choose a --method, --target and --run that the tables hold",
            )
        if len(methods) > 1:
            raise DataError(
                f"several attribution methods: {', '.join(sorted(set(methods)))}",
                where=self._where,
                expected="one method: scores of different methods have different meanings",
                fix=f"choose one, for example --method {methods[0]}",
            )
        return methods[0], rows["units"][0].as_py()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise errors of DuckDB as our own."""
        try:
            yield
        except self._duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"not enough memory ({error})",
                where="analysis of influence tables",
                expected="memory for one row per explanation",
                fix="set a larger --memory",
            ) from error
        except self._duckdb.IOException as error:
            raise OutputError(
                f"temporary files cannot be written ({error})",
                where=self._folder.name,
                expected="free space for rows that do not fit into memory",
                fix="name another folder with --temp",
            ) from error
