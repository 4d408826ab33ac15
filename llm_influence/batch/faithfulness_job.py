"""Faithfulness of attribution methods over many users, as Parquet shards and a summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState

from llm_influence.batch.shards import (
    OnShard,
    Shards,
    histories_fingerprint,
    model_fingerprint,
)
from llm_influence.faithfulness.evaluate import (
    ComparedMethod,
    FaithfulnessOptions,
    comparison_result,
    measure_batch,
    methods_compared,
    refuse_empty,
)
from llm_influence.faithfulness.result import (
    FaithfulnessResult,
    misleading_lines,
    plot_curves,
    to_csv,
    to_markdown,
)
from llm_influence.modeling.backbone import on_cpu
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History
from llm_influence.utils import distributed, write_text, write_whole


@distributed()
def measure_faithfulness(
    model: InfluenceModel,
    histories: Sequence[History],
    methods: Sequence[str | ComparedMethod],
    out: str | Path,
    options: FaithfulnessOptions | None = None,
    *,
    shard_size: int = 8,
    progress: bool = True,
    on_shard: OnShard | None = None,
) -> FaithfulnessResult:
    """Measure several methods side by side into ``out``. Run it again after a kill to continue.

    ``out`` receives ``part-00000.parquet`` and on during the work, and at its end
    ``faithfulness.json``, ``.csv``, ``.md`` and ``curves.png``.

    Args:
        model: The model.
        histories: Histories whose predictions are explained.
        methods: Names of the registry, or compared methods with options.
        out: The folder.
        options: What is measured. Default: `FaithfulnessOptions()`.
        shard_size: Histories of one shard: what a kill may lose. Default 8.
        progress: Whether to show a progress bar.
        on_shard: Called with the path of each shard that this process has written.

    Raises:
        ExplanationError: See `evaluate_faithfulness`; nothing is written then.
        OutputError: ``out`` cannot be written, or holds another comparison.
        ConfigError: matplotlib is not installed; all that was measured is kept.
    """
    options = options or FaithfulnessOptions()
    refuse_empty(histories)
    compared = methods_compared(methods, options.removals)
    plan = {
        "model": model_fingerprint(model),
        "histories": histories_fingerprint(histories),
        "users": len(histories),
        "methods": {method.label: dict(method.options) for method in compared},
        "options": {name: str(value) for name, value in asdict(options).items()},
        "shard_size": shard_size,
    }
    shards = Shards(Path(out), plan, len(histories), shard_size)

    def compute(rows: range) -> pa.Table:
        part = [histories[row] for row in rows]
        return measure_batch(model, part, compared, options, first=rows.start)

    shards.fill(compute, name="faithfulness", on_shard=on_shard, progress=progress)
    measured = pa.concat_tables([pq.read_table(path) for path in shards.paths])
    result = comparison_result(measured, compared)
    if PartialState(cpu=on_cpu()).is_main_process:
        _write(shards.folder, result)
    return result


def _write(folder: Path, result: FaithfulnessResult) -> None:
    """The summary as JSON, CSV and Markdown, and the curves as a picture."""
    summary = {
        "schema": 1,
        "plan": json.loads((folder / "plan.json").read_text(encoding="utf-8")),
        "baselines": list(result.baselines),
        "summary": result.summary(),
        "misleading": result.misleading(),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(folder / "faithfulness.json", text)
    write_text(folder / "faithfulness.csv", to_csv(result))
    tables = [to_markdown(result, removal) for removal in result.removals]
    warnings = [f"- {line}" for line in misleading_lines(result)]
    notes = ["Not better than a baseline:", "", *warnings, ""] if warnings else []
    write_text(folder / "faithfulness.md", "\n".join([*tables, *notes]))
    savefig = plot_curves(result).savefig
    write_whole(folder / "curves.png", partial(savefig, dpi=150, format="png"))
