"""Faithfulness of methods over many users, in a folder that survives being killed.

Users are cut into shards in the order given. Each shard is written whole or not at all as soon as
it is done; started again with the same plan, the job goes on where the folder stands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from llm_influence.batch.shards import SHARD, claim, histories_fingerprint, model_fingerprint
from llm_influence.errors import OutputError
from llm_influence.faithfulness.evaluate import measure_batch, refuse_empty
from llm_influence.faithfulness.options import ComparedMethod, Options, methods_compared
from llm_influence.faithfulness.plots import plot_curves
from llm_influence.faithfulness.result import (
    FaithfulnessResult,
    misleading_lines,
    to_csv,
    to_markdown,
)
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History
from llm_influence.utils import write_text, write_whole


def measure_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | ComparedMethod],
    out: str | Path,
    options: Options | None = None,
    *,
    shard_size: int = 8,
    progress: bool = True,
) -> FaithfulnessResult:
    """Measure methods beside each other into ``out``; run again after a kill, it goes on.

    ``out`` receives ``part-00000.parquet`` and on while the work goes on, and at its end
    ``faithfulness.json``, ``.csv``, ``.md`` and ``curves.png``.

    Args:
        model: The model.
        histories: Whose predictions are explained.
        methods: Names of the registry, or compared.
        out: The folder.
        options: What is measured; default: `Options()`.
        shard_size: Histories of a shard: what a kill may lose.
        progress: Show a bar.

    Raises:
        ExplanationError: See `evaluate_faithfulness`; nothing is written then.
        OutputError: ``out`` cannot be written, or holds another comparison.
        ConfigError: matplotlib is not installed; all that was measured is kept.
    """
    options, folder = options or Options(), Path(out)
    refuse_empty(histories)
    compared = methods_compared(methods, options.removals)
    claim(folder, _plan(model, histories, compared, options, shard_size))
    for half_written in folder.glob(f".{SHARD}*.tmp"):
        half_written.unlink()
    starts = range(0, len(histories), shard_size)
    with tqdm(total=len(histories), unit="user", desc="faithfulness", disable=not progress) as bar:
        for number, start in enumerate(starts):
            part = histories[start : start + shard_size]
            path = _shard(folder, number)
            if not path.exists():
                rows = measure_batch(model, part, compared, options, first=start)
                write_whole(path, partial(pq.write_table, rows))
            bar.update(len(part))
    shards = [pq.read_table(_shard(folder, number)) for number in range(len(starts))]
    result = FaithfulnessResult.of(pa.concat_tables(shards), compared)
    _write(folder, result)
    return result


def _plan(
    model: InfluenceModel,
    histories: Sequence[History],
    compared: Sequence[ComparedMethod],
    options: Options,
    shard_size: int,
) -> dict[str, object]:
    """What the folder is asked to hold; it must not change between runs."""
    if shard_size < 1:
        raise OutputError(
            f"shard_size is {shard_size}",
            where="faithfulness",
            expected="at least 1",
            fix="ask for at least one user a shard",
        )
    return {
        "model": model_fingerprint(model),
        "histories": histories_fingerprint(histories),
        "users": len(histories),
        "methods": {each.label: dict(each.options) for each in compared},
        "options": {name: str(value) for name, value in asdict(options).items()},
        "shard_size": shard_size,
    }


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{SHARD}{number:05d}.parquet"


def _write(folder: Path, result: FaithfulnessResult) -> None:
    """The summary as JSON, CSV and Markdown, and the curves as a picture."""
    summary = {
        "schema": 1,
        "plan": json.loads((folder / "plan.json").read_text(encoding="utf-8")),
        "references": list(result.references),
        "summary": result.summary(),
        "misleading": result.misleading(),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(folder / "faithfulness.json", text)
    write_text(folder / "faithfulness.csv", to_csv(result))
    tables = [to_markdown(result, removal) for removal in result.removals]
    warnings = [f"- {line}" for line in misleading_lines(result)]
    notes = ["Not better than a reference:", "", *warnings, ""] if warnings else []
    write_text(folder / "faithfulness.md", "\n".join([*tables, *notes]))
    figure = plot_curves(result)
    write_whole(folder / "curves.png", lambda place: figure.savefig(place, dpi=150, format="png"))
