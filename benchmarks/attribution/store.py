"""Measurements kept on disk as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Record = dict[str, object]


class Store:
    """A JSON Lines file of measurements by key.

    Args:
        path: The file; made if it is not there.
        settings: What must be the same for a measurement to be used again.

    Raises:
        SystemExit: The file holds measurements made with other settings.
    """

    def __init__(self, path: Path, settings: Record) -> None:
        self._path, self._known = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) != settings:
            raise SystemExit(f"{path} was begun with {head}, not {settings}: delete it")
        for line in lines:
            record = json.loads(line)
            self._known[record["key"]] = record["value"]

    def keep(self, key: str, measure: Callable[[], Record]) -> Record:
        """The measurement of that key: read if it is there, else made, written and printed."""
        if key not in self._known:
            value = measure()
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
            shown = {k: v for k, v in value.items() if not isinstance(v, list)}
            print(f"{key}: {json.dumps(shown)}", flush=True)
            self._known[key] = value
        return self._known[key]
