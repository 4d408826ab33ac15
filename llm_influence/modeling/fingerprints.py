"""Digests that show whether a stored result belongs to a model and its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from llm_influence.data.log import BehaviorLog
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.types import History


def model_fingerprint(model: InfluenceModel) -> str:
    """Digest of every trained weight, the memory, the text vectors, the item ids and the rules.

    That of an ensemble is made of its weights and of the digests of its members.
    """
    if isinstance(model, Ensemble):
        own = [rule.model_dump() for rule in model.rules]
        return digest(repr((model.weights, own)), *map(model_fingerprint, model.models))
    trained = ((n, p) for n, p in sorted(model.named_parameters()) if p.requires_grad)
    weights = ((name, weight.detach().cpu().numpy()) for name, weight in trained)
    memory = model.item_head.memory
    fitted = {} if memory is None else memory.state_dict()
    # Rules decide what is recommended, and so what is explained.
    rules = repr([rule.model_dump() for rule in model.rules]) if model.rules else ""
    return digest(
        model.embeddings.words.cpu().numpy(),
        *(part for pair in weights for part in pair),
        *(column.cpu().numpy() for _, column in sorted(fitted.items())),
        "\n".join(model.catalogue.ids.to_pylist()),
        rules,
    )


def log_fingerprint(log: BehaviorLog) -> str:
    """Digest of every event of a log and of the meaning of its codes."""
    names = (log.user_ids.to_pylist(), log.code_names.items.to_pylist(), log.code_names.behaviors)
    columns = (log.offsets, log.items, log.behaviors, log.timestamps, log.values)
    return digest(*columns, *("\n".join(part) for part in names))


def histories_fingerprint(histories: Iterable[History]) -> str:
    """Digest of every event of these histories and of their users' features."""
    return digest(
        *(
            part
            for history in histories
            for part in (
                "\n".join([history.user_id, *history.item_ids()]),
                "\n".join(history.code_names.behaviors),
                repr(sorted(history.user.items())),
                *(history.behaviors, history.timestamps, history.values),
            )
        )
    )


def digest(*parts: str | npt.NDArray[np.generic]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of texts and arrays."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(
            part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes()
        )
    return hashed.hexdigest()[:16]
