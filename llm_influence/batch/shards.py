"""Items and users beside the shards, so that an analysis needs neither the model nor the log.

What a folder of shards was asked to hold.

The plan is written before the first shard. A later run with the same plan goes on where the
folder stands; one with another plan is refused, so that shards of two runs never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_influence.attribution.explainer import Explainer
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.errors import OutputError
from llm_influence.influence.facts import Key
from llm_influence.influence.table_files import SIDE_TABLES
from llm_influence.modeling.model import InfluenceModel
from llm_influence.types import History
from llm_influence.utils import write_text, write_whole


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


SHARD = "part-"
"""How the names of shard files begin."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch explanation.

    Attributes:
        model: Fingerprint of the model's trained weights.
        log: Fingerprint of the log.
        method, removal, options, seed: Of the explainer.
        players: Who gets a score, as text.
        dtype: In which the model is read.
        fidelity_masks, agree_with: What its quality card measures.
        target: What is explained, as text.
        users: Users of the log.
        shard_size: Users of a shard; shards are cut by user order alone, never by process.
        query_time: Unix seconds at which all users are asked; None: at no moment.
        examples: Fingerprint of a split's examples, which stand for users; None: whole histories.
        withheld: Fingerprint of the explanations that are not to be written; None: all are.
    """

    model: str
    log: str
    method: str
    removal: str
    options: dict[str, object]
    seed: int
    players: str
    dtype: str
    fidelity_masks: int
    agree_with: str
    target: str
    users: int
    shard_size: int
    query_time: int | None = None
    examples: str | None = None
    withheld: str | None = None

    @classmethod
    def of(cls, explainer: Explainer, log: BehaviorLog, target: str, shard_size: int) -> Plan:
        """The plan of explaining ``log``.

        Raises:
            OutputError: Shards would be empty.
        """
        if shard_size < 1:
            raise OutputError(
                f"shard_size is {shard_size}",
                where="batch explanation",
                expected="at least 1",
                fix="ask for at least one user a shard",
            )
        return cls(
            model=model_fingerprint(explainer.model),
            log=log_fingerprint(log),
            method=explainer.method.name,
            removal=explainer.removal if explainer.method.removals else "none",
            options=explainer.method.options,
            seed=explainer.seed,
            players=str(explainer.players),
            dtype=explainer.dtype,
            fidelity_masks=explainer.card.fidelity_masks,
            agree_with=explainer.card.agree_with.name if explainer.card.agree_with else "",
            target=target,
            users=len(log),
            shard_size=shard_size,
        )

    @property
    def shards(self) -> list[range]:
        """Rows of the log's users in each shard."""
        starts = range(0, self.users, self.shard_size)
        return [range(start, min(start + self.shard_size, self.users)) for start in starts]

    def claim(self, folder: Path) -> None:
        """Make ``folder`` this plan's own; see `claim`."""
        claim(folder, asdict(self))


def claim(folder: Path, plan: Mapping[str, object]) -> None:
    """Write ``plan`` into ``folder``, or check that it is the one already there.

    A plan without any shard (a run that failed at once) binds nobody and is replaced.

    Raises:
        OutputError: The folder cannot be written, or belongs to another plan.
    """
    path = folder / "plan.json"
    text = json.dumps(plan, indent=2, ensure_ascii=False, default=str) + "\n"
    if not path.exists() or not any(folder.glob(f"{SHARD}*.parquet")):
        write_text(path, text)
        return
    theirs, ours = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
    changed = sorted(key for key in ours if ours[key] != theirs.get(key))
    if changed:
        shown = ", ".join(f"{key}: {theirs.get(key)!r}, now {ours[key]!r}" for key in changed)
        raise OutputError(
            f"the folder holds another run ({shown})",
            where=str(folder),
            expected="the same model, log, method and options, or a new folder",
            fix="choose another --out, or repeat the command that began this folder",
        )


def model_fingerprint(model: InfluenceModel) -> str:
    """Digest of every trained weight, the units' text vectors, the item ids and the rules."""
    digest = hashlib.sha256(model.units.words.cpu().numpy().tobytes())
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().numpy().tobytes())
    digest.update("\n".join(model.catalogue.ids.to_pylist()).encode())
    if model.rules:  # they decide what is recommended, and so what is explained
        digest.update(repr([rule.model_dump() for rule in model.rules]).encode())
    return digest.hexdigest()[:16]


def histories_fingerprint(histories: Sequence[History]) -> str:
    """Digest of every event of these histories, by name, and of their users."""
    digest = hashlib.sha256()
    for history in histories:
        digest.update("\n".join([history.user_id, *history.item_ids()]).encode())
        digest.update("\n".join(history.code_names.behaviors).encode())
        digest.update(repr(sorted(history.user.items())).encode())
        for column in (history.behaviors, history.timestamps, history.values):
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def examples_fingerprint(examples: EvaluationSet) -> str:
    """Digest of which events of a log are asked after."""
    digest = hashlib.sha256()
    for column in (examples.users, examples.positions):
        digest.update(np.ascontiguousarray(column, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]


def keys_fingerprint(keys: Collection[Key]) -> str | None:
    """Digest of the keys of explanations; None without any."""
    return hashlib.sha256(repr(sorted(keys)).encode()).hexdigest()[:16] if keys else None


def log_fingerprint(log: BehaviorLog) -> str:
    """Digest of every event of a log and of what its codes mean."""
    digest = hashlib.sha256()
    for column in (log.offsets, log.items, log.behaviors, log.timestamps, log.values):
        digest.update(np.ascontiguousarray(column).tobytes())
    for names in (log.user_ids, log.code_names.items):
        digest.update("\n".join(names.to_pylist()).encode())
    digest.update("\n".join(log.code_names.behaviors).encode())
    return digest.hexdigest()[:16]


def write_manifest(folder: Path, plan: Plan, rows: dict[str, int]) -> None:
    """Write ``manifest.json``: the plan and the rows of every shard; its presence means done."""
    manifest = {
        "schema": 1,
        "plan": asdict(plan),
        "shards": [{"file": name, "rows": count} for name, count in rows.items()],
        "rows": sum(rows.values()),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n"
    write_text(folder / "manifest.json", text)
