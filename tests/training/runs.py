"""Small runs from files, and what they leave on disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from llm_influence.config.run import RunConfig
from llm_influence.training.batches import IGNORE, Window, WindowCollator
from llm_influence.training.objective import NextEventObjective
from tests import tiny

NO_ITEMS = {"item_head": {"weight": 0.0}}
NO_DROPOUT = {"dropout": 0.0, "adapter": {"rank": 4, "dropout": 0.0}}


def config_in(
    folder: Path,
    events: pa.Table | None = None,
    *,
    kind: str = "bert",
    style: str = "token",
    **sections: dict,
) -> RunConfig:
    """A run on a log written to ``folder``, its output beside the log."""
    pa.parquet.write_table(
        tiny.events_table() if events is None else events, folder / "log.parquet"
    )
    pa.parquet.write_table(tiny.items_table(), folder / "items.parquet")
    data = {"source": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    sections["data"] = {**data, **sections.get("data", {})}
    config = tiny.run_config(kind, style, **sections)
    return config.model_copy(update={"output": str(folder / "run")})


def walk_events(users: int, length: int = 8, items: int = 30) -> pa.Table:
    """A log that is easy to predict: item n is always followed by item n + 1."""
    steps = np.arange(users * length) % length
    first = np.repeat(np.arange(users) * 7, length)
    return pa.table(
        {
            "user_id": [f"u{n}" for n in np.repeat(np.arange(users), length)],
            "item_id": [f"i{n}" for n in (first + steps) % items],
            "timestamp": 1_000_000 + 3600 * steps,
        }
    )


def feedback_head(kind: str = "binary", **options: object) -> dict:
    return {"weight": 1.0, "kind": kind, "positive_from": 4.0, "hidden": 8, **options}


def weights(folder: Path) -> dict[str, Tensor]:
    """All trained weights of a model folder or checkpoint: without an adapter, the backbone's."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    tuned = adapter if adapter.exists() else folder / "backbone" / "model.safetensors"
    return {**load_file(folder / "heads.safetensors"), **load_file(tuned)}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(
        float((one[n].double() - other[n].double()).abs().max()) for n in one if one[n].numel()
    )


def step_in_parts(
    objective: NextEventObjective,
    collator: WindowCollator,
    windows: Sequence[Window],
    cuts: Sequence[int],
) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one step over all windows, cut into micro-batches of these sizes."""
    labels = int((collator(windows)["labels"] != IGNORE).sum())
    objective.zero_grad()
    total, start = 0.0, 0
    for size in cuts:
        part = collator(windows[start : start + size])
        piece = objective(**part, num_items_in_batch=labels)["loss"]
        piece.backward()
        total, start = total + float(piece.detach()), start + size
    return total, [p.grad.clone() for p in objective.parameters() if p.grad is not None]


class InterruptedRunError(Exception):
    pass


class InterruptAfter(TrainerCallback):
    """Interrupts training at the first step after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_step_begin(self, args, state, control, **_):
        if state.epoch > self.epochs:
            raise InterruptedRunError


@contextmanager
def interrupted(
    module: ModuleType,
    callback: TrainerCallback | None = None,
    *,
    trainer: str = "InfluenceTrainer",
    error: type[BaseException] = InterruptedRunError,
) -> Iterator[None]:
    """Expect that the callback interrupts a trainer of the module; default: after one epoch."""

    class Interrupted(getattr(module, trainer)):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.add_callback(callback or InterruptAfter(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, trainer, Interrupted)
        with pytest.raises(error):
            yield
