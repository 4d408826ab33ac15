"""A model that is shared: its model card, and the Hugging Face hub."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from llm_influence.datasets.public import PUBLIC
from llm_influence.errors import ModelFolderError, OutputError
from llm_influence.modeling.parts import Parts

Metrics: TypeAlias = Mapping[str, Mapping[str, float | None]]
"""Values by head and metric."""
MAIN_METRICS = ("hr@", "ndcg@", "mrr", "auc", "log_loss", "accuracy", "rmse")
"""Starts or ends of the names of metrics in the card's front matter."""
_INTRODUCTION = """\
# {title}

This model reads what a user did (the *history*) and predicts the next item{behavior}{feedback}.
It was trained with llm_influence, which also computes
how much each event of the history counted for a prediction.

Backbone: {backbone}. Adapter: {adapter}. Catalogue: {items:,} items. Behaviours: {behaviors}.

## Use

```python
from llm_influence import BehaviorLog, Explainer, InfluenceModel

model = InfluenceModel.from_pretrained("org/name")   # the name of this repository, or a folder
history = BehaviorLog.read("events.parquet", items="items.parquet")["some user"]
model.recommend(history, k=10)
print(Explainer(model).explain(history).to_text())
```
"""
_INFLUENCE = """\
## What influence means

The influence of an event is the change of the model's prediction when this event is removed from
the history (or an average of such changes over sets of events, for Shapley values).

- It describes the model, not the user: it does not say why a person did something.
- It is not a causal effect on people: nothing was changed in the world.
- It depends on the method and on how events are removed; every explanation reports both, with
  checks of its quality.
- It is no better than the model. Read the metrics above first.
"""


def model_card(parts: Parts) -> str:
    """The card of a model, Markdown with YAML front matter.

    Metrics are in the card if ``parts.protocol`` has them: ``metrics`` by head, and the rules of
    the evaluation in ``test`` (`training.finetune` writes both).
    """
    protocol = parts.protocol
    data, licence = _data(protocol)
    front: dict[str, Any] = {"library_name": "llm-influence"}
    if (base := parts.backbone.hub_name) is not None:
        front["base_model"] = base
    front["tags"] = ["recommendation", "sequential-recommendation", "explainability", "influence"]
    metrics: Metrics = protocol.get("metrics") or {}
    if metrics:
        front["model-index"] = [_index(metrics, data)]
    text = _INTRODUCTION.format(
        title="A next-event model" + ("" if data is None else f" for {data}"),
        behavior=" and behaviour" if len(parts.encoder.vocabulary.behaviors) > 1 else "",
        feedback=", and feedback on it" if parts.heads.feedback is not None else "",
        backbone=base or parts.config.backbone.rpartition("/")[2],
        adapter=parts.config.adapter.describe(),
        items=len(parts.encoder.vocabulary.catalogue),
        behaviors=", ".join(parts.encoder.vocabulary.behaviors),
    )
    sections = [text, _metrics(metrics, protocol), _shift(protocol.get("shift"))]
    sections.append(_data_section(data, licence, protocol))
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join([*filter(None, sections), _INFLUENCE])


def _data(protocol: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Name of the data, without folders, and its licence."""
    source = protocol.get("data")
    if not isinstance(source, str):
        return None, None
    public = PUBLIC.get(source)
    return Path(source).name, None if public is None else public.licence


def _index(metrics: Metrics, data: str | None) -> dict[str, Any]:
    """The entry of `model-index`, the format of results on the hub."""
    name = data or "the test split"
    values = [
        {"type": metric, "name": f"{metric} ({head})", "value": round(value, 6)}
        for head, group in metrics.items()
        for metric, value in group.items()
        if value is not None and any(part in metric for part in MAIN_METRICS)
    ]
    task = {"type": "recommendation", "name": "next event"}
    dataset = {"name": name, "type": name, "split": "test"}
    result = {"task": task, "dataset": dataset, "metrics": values}
    return {"name": "llm-influence model", "results": [result]}


def _metrics(metrics: Metrics, protocol: Mapping[str, Any]) -> str:
    lines = ["## Metrics", ""]
    if not metrics:
        return "\n".join(
            [*lines, "The test split was not measured when this card was written.", ""]
        )
    test = protocol.get("test") or {}
    lines += ["| head | metric | value | 95% interval |", "|---|---|---|---|"]
    for head, group in metrics.items():
        for metric, value in group.items():
            shown = "undefined" if value is None else f"{value:.4f}"
            interval = ""
            if value is not None and metric.startswith(("hr@", "recall@")) and test.get("rows"):
                low, high = wilson(value, int(test["rows"]))
                interval = f"{low:.4f} to {high:.4f}"
            lines.append(f"| {head} | {metric} | {shown} | {interval} |")
    lines += ["", "Measured once, on the test split. Protocol:", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in test.items()]
    note = "Intervals are Wilson intervals of a share over the test rows. `llm-influence evaluate`"
    return "\n".join(
        [*lines, "", note, "gives bootstrap intervals over users for all metrics.", ""]
    )


def _shift(shift: Mapping[str, Any] | None) -> str:
    """The section on removals; empty without a measurement."""
    if shift is None or shift["shift"] is None:
        return ""
    return "\n".join(
        [
            "## Shift by removal",
            "",
            f"shift: {shift['shift']:.2f}, on {shift['users']} validation users.",
            "It is the size of the mean score of the oldest half of a user's events over the",
            "standard deviation of these scores, for the median user. Each event alone is dropped.",
            "Above 1, what all old events have in common is larger than their differences, and it",
            "says nothing about single events: compare the scores with those of removal `mask`.",
            "",
        ]
    )


def wilson(share: float, rows: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share of ``rows`` (Wilson 1927); 95% for the default z."""
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) * z / (1 + z**2 / rows)
    return centre - half, centre + half


def _data_section(data: str | None, licence: str | None, protocol: Mapping[str, Any]) -> str:
    lines = ["## Data", ""]
    lines.append("Not recorded." if data is None else f"Training data: {data}.")
    lines.append(f"Licence of the data: {licence or 'not recorded'}.")
    if isinstance(split := protocol.get("split"), Mapping):
        lines += ["", "Split:", ""]
        lines += [f"- {name.replace('_', ' ')}: {_plain(value)}" for name, value in split.items()]
    return "\n".join([*lines, ""])


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FAILURES = (HTTPError, OSError, ValueError)


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: a local one, or a download from the hub.

    Args:
        source: Local folder, or the name of a repository, "org/name". A local folder comes first.
        revision: Branch, tag or commit of the repository; default: its main branch.

    Raises:
        ModelFolderError: There is no such folder and no such repository, or the hub cannot be
            reached.
    """
    folder = Path(source)
    if folder.exists() or not _REPOSITORY.fullmatch(str(source)):
        return folder
    try:
        return Path(snapshot_download(str(source), revision=revision, library_name="llm_influence"))
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFolderError(
            f"neither a folder here nor a model that the hub gives ({lines[0]})",
            where=str(source) if revision is None else f"{source}, revision {revision!r}",
            expected="a folder written by save_pretrained, or org/name of a model on the hub",
            fix="check the name and the network; log in with `hf auth login` for a private model",
        ) from error


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Upload a model folder in one commit; the repository and branch are created if needed.

    Returns:
        Address of the commit.

    Raises:
        OutputError: The hub refuses the upload or cannot be reached.
    """
    api = HfApi(library_name="llm_influence")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OutputError(
            f"the upload failed ({lines[0]})",
            where=repo_id,
            expected="org/name of a repository that you may write to",
            fix="log in with `hf auth login`, and check the name and the network",
        ) from error
    return str(commit.commit_url)
