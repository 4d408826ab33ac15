"""Parts of the plan of a batch: digests of what decides a number, and the sample of users."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa
import torch

from llm_influence.errors import ExplanationError, out_of_range
from llm_influence.modeling.fingerprints import digest
from llm_influence.modeling.model import Ensemble, InfluenceModel

LEAST_CARDS = 200
"""Fewest users whose cards are measured, where there are so many."""


def model_setting(model: InfluenceModel) -> str:
    """Digest of what `model_fingerprint` leaves out: frozen weights, rendering and protocol."""
    if isinstance(model, Ensemble):
        return digest(*map(model_setting, model.models))
    state = sorted(model.backbone.model.state_dict().items())
    weights = (tensor.detach().cpu().contiguous().reshape(-1) for _, tensor in state)
    encoder = model.encoder
    rendering = (
        encoder.style,
        encoder.template.model_dump_json(),
        encoder.max_events,
        encoder.max_tokens,
    )
    protocol = {name: value for name, value in model.protocol.items() if name != "metrics"}
    return digest(
        *(weight.view(torch.uint8).numpy() for weight in weights),
        repr(rendering),
        json.dumps(protocol, sort_keys=True, default=str),
    )


def table_digest(table: pa.Table) -> str:
    """Digest of every cell of a table and of the column names."""
    return digest(
        *(
            f"{name}\n{chr(10).join(map(repr, table[name].to_pylist()))}"
            for name in table.schema.names
        )
    )


def sampled_users(users: Sequence[str], one_in: int, seed: int) -> frozenset[str] | None:
    """One in so many users, at least `LEAST_CARDS`, by a hash of seed and id; None: all of them.

    Raises:
        ExplanationError: ``one_in`` is below 1.
    """
    if one_in < 1:
        raise out_of_range(ExplanationError, "card_sample", one_in, expected="at least 1")
    count = max(-(-len(users) // one_in), LEAST_CARDS)
    if count >= len(users):
        return None

    def place(user: str) -> bytes:
        return hashlib.blake2b(f"{seed}\n{user}".encode(), digest_size=8).digest()

    return frozenset(sorted(users, key=place)[:count])
