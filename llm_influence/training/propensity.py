"""Inverse propensity weights: labels of items that were rarely shown count more.

A log shows what people did among what they were shown. Where an item comes next with a chance
proportional to (what the user wants) x (its propensity), labels weighted by 1 / propensity are
those of a log without that factor (Schnabel et al. 2016, arXiv:1602.05352; popularity as
propensity: Saito et al. 2020, arXiv:1909.03601).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from llm_influence.config import PropensityConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import DataError, SchemaError, choices
from llm_influence.types import FloatArray, IntArray


def label_weights(
    config: PropensityConfig, catalogue: Catalogue, log: BehaviorLog
) -> FloatArray | None:
    """(I,) float32, how much a label counts by its item; None where all count alike.

    ``1 / max(propensity, clip)``, divided by the mean over the labels of ``log``: clipped, so that
    no rare item decides alone, and self-normalised, so that the learning rate means what it does
    without weights.

    Raises:
        SchemaError: The item table has no such column, or one that is no number.
        DataError: An item of training has no exposure above 0.
    """
    if config.source == "none":
        return None
    counts = np.bincount(log.items, minlength=len(catalogue))
    found = counts if config.column is None else _exposures(config.column, catalogue, counts)
    power = config.power or (0.5 if config.column is None else 1.0)
    chances = (found / found.max()) ** power
    weights = 1 / np.maximum(chances, config.clip)
    mean = (weights @ counts) / counts.sum()
    return (weights / mean).astype(np.float32)


def _exposures(name: str, catalogue: Catalogue, counts: IntArray) -> FloatArray:
    """(I,) the column; items that never occur may have none."""
    table, where = catalogue.table, "train.propensity.column"
    if name not in table.column_names:
        raise SchemaError(
            f"the item table has no column {name!r}",
            where=where,
            expected=choices(table.column_names, name),
            fix="name the column that says how often each item was shown",
        )
    kind = table[name].type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaError(
            f"column {name!r} has type {kind}",
            where=where,
            expected="numbers",
            fix="write the exposures as numbers",
        )
    found = table[name].cast(pa.float64()).fill_null(0).to_numpy()
    bad = (counts > 0) & ~((found > 0) & np.isfinite(found))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"item {catalogue.ids[row].as_py()!r} occurs in training and its {name!r} is "
            f"{table[name][row].as_py()}",
            where=where,
            expected="a number above 0 for every item that was seen",
            fix="correct the exposures",
        )
    return np.where(np.isfinite(found), np.maximum(found, 0), 0)
