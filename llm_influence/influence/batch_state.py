"""State of the folders that `explain_batch` wrote: whose explanations they hold, and how many.

Only ``plan.json``, ``manifest.json`` and the footers of the shards are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.errors import DataError, unreadable


def models_of(sources: Sequence[Path | str]) -> list[str]:
    """Fingerprints of the models that these folders explain, without repetition.

    Raises:
        DataError: A plan cannot be read.
    """
    plans = [_tree(folder / "plan.json") for folder in _folders(sources)]
    return list(dict.fromkeys(str(plan["model"]) for plan in plans if "model" in plan))


def check_model(sources: Sequence[Path | str], fingerprint: str) -> None:
    """Refuse folders that explain another model.

    Raises:
        DataError: A plan has another fingerprint, or cannot be read.
    """
    for folder in _folders(sources):
        model = _tree(folder / "plan.json").get("model", fingerprint)
        if model != fingerprint:
            raise DataError(
                f"explanations of another model ({model})",
                where=str(folder),
                expected=f"explanations of the given model and rules ({fingerprint})",
                fix="name the run and the --rules that were explained, or explain this run",
            )


def notes_on(sources: Sequence[Path | str]) -> list[str]:
    """Sentences on what these folders lack: shards of an unfinished batch, and failed users.

    Raises:
        DataError: A plan or manifest cannot be read.
    """
    folders = _folders(sources)
    notes = [note for folder in folders if (note := _note(folder))]
    models = models_of(sources)
    if len(models) > 1:
        notes.append(f"explanations of {len(models)} models together")
    return notes


def cards_of(sources: Sequence[Path | str]) -> dict[str, str]:
    """By name of folder, the quality that its manifest states, in words."""
    return {
        folder.name: text
        for folder in _folders(sources)
        if (text := _words(_tree(folder / "manifest.json").get("cards", {})))
    }


def _words(cards: Any) -> str:  # noqa: ANN401
    named = (("lds", "fidelity (LDS)"), ("completeness_gap", "gap"))
    return "; ".join(
        f"{name} of {cards[key]['measured']:,} of {cards['explanations']:,} explanations: median "
        f"{cards[key]['median']:.3g}, quartiles {cards[key]['lower_quartile']:.3g} to "
        f"{cards[key]['upper_quartile']:.3g}"
        for key, name in named
        if cards.get(key, {}).get("measured")
    )


def _folders(sources: Sequence[Path | str]) -> list[Path]:
    """The batch folders among or below these places; a file belongs to its folder."""
    places = [Path(place) for place in sources]
    folders = [place if place.is_dir() else place.parent for place in places]
    below = [plan.parent for place in places if place.is_dir() for plan in place.rglob("plan.json")]
    found = [folder for folder in [*folders, *below] if (folder / "plan.json").exists()]
    return list(dict.fromkeys(found))


def _note(folder: Path) -> str:
    manifest = _tree(folder / "manifest.json")
    if not manifest:
        plan = _tree(folder / "plan.json")
        made, size = len(list(folder.glob("part-*.parquet"))), int(plan.get("shard_size", 0))
        of = f" of {-(-int(plan['users']) // size)}" if size and "users" in plan else ""
        return f"{folder.name} is not finished: {made}{of} shards are there"
    lost = [shard["file"] for shard in manifest["shards"] if _rows(folder, shard) != shard["rows"]]
    if lost:
        return f"{folder.name} lacks {len(lost)} of {len(manifest['shards'])} shards ({lost[0]})"
    failed = manifest.get("failed", 0)
    return f"{failed:,} explanations of {folder.name} failed, see errors.parquet" if failed else ""


def _rows(folder: Path, shard: Any) -> int:  # noqa: ANN401
    try:
        rows: int = pq.read_metadata(folder / shard["file"]).num_rows
    except (OSError, pa.ArrowException):
        return -1
    return rows


def _tree(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no file."""
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "explain again: the command checks the shards and writes this file"
        raise unreadable(DataError, path, error, expected="JSON of a batch", fix=fix) from error
    return tree if isinstance(tree, dict) else {}
