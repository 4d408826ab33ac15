"""AdaLoRA: low-rank updates whose ranks are pruned, where they matter least, during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import AdaLoraConfig, PeftConfig
from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.adapters.adapter import register
from llm_influence.modeling.adapters.low_rank import shared_options
from llm_influence.modeling.adapters.peft_adapter import PeftAdapter

_NAME = "default"
"""PEFT's name of the only adapter."""


@register("adalora")
class AdaLora(PeftAdapter):
    """``W + alpha / r * B E A`` with a diagonal E that loses entries while it trains.

    Zhang et al. 2023, arXiv:2303.10512. All updates start with ``initial_rank``. Between
    ``prune_from`` and ``prune_until`` (shares of all steps) the sum of ranks falls to ``rank`` a
    matrix; what goes is what the loss is least sensitive to, whichever matrix it is in.

    PEFT trims what it saves to the ranks of the moment, while pruned entries may still come back
    until the schedule ends. Here all entries are saved, pruned ones as zeros: predictions do not
    change by saving, and training goes on from any checkpoint.
    """

    @classmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """See `PeftAdapter.peft_config`; the schedule stays empty until `begin`."""
        return AdaLoraConfig(
            init_r=config.first_rank,
            target_r=config.rank,
            orth_reg_weight=config.orthogonality,
            total_step=1,
            **shared_options(model, config),
        )

    @property
    def schedule(self) -> AdaLoraConfig:
        """PEFT's configuration, which its rank allocator reads at every step."""
        return self.body.peft_config[_NAME]

    def ranks(self) -> dict[str, int]:
        """Rank of the update of every matrix."""
        return {
            name.partition(".lora_E")[0]: int(parameter.count_nonzero())
            for name, parameter in self.body.get_base_model().named_parameters()
            if ".lora_E." in name
        }

    def begin(self, total_steps: int) -> None:
        """See `Adapter.begin`."""
        first = round(self.config.prune_from * total_steps)
        last = round(self.config.prune_until * total_steps)
        if last < max(2, first + 1):
            raise ConfigError(
                f"adalora would prune from step {first} to step {last}",
                where=f"model.adapter.prune_from and prune_until, {total_steps} steps in all",
                expected="a first step to learn which ranks matter, and one after it to prune",
                fix="train longer, or raise model.adapter.prune_until",
            )
        schedule = self.schedule
        schedule.total_step, schedule.tinit, schedule.tfinal = (
            total_steps,
            first,
            total_steps - last,
        )
        schedule.deltaT = max(1, round(self.config.prune_every * total_steps))

    def after_step(self, step: int) -> None:
        """See `Adapter.after_step`: PEFT reads gradients for the ranks' importance, and prunes."""
        self.body.base_model.update_and_allocate(step)

    def penalty(self) -> Tensor | None:
        """How far the singular vectors are from orthogonal, weighted; without it E has no meaning.

        Mean over all A and B of ``||A A' - I||``, ``||B' B - I||`` (Frobenius norm, not its
        square), as the authors' code and PEFT compute it.
        """
        distances = []
        for name, parameter in self.body.get_base_model().named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                rows = parameter if ".lora_A." in name else parameter.T
                identity = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - identity))
        return self.config.orthogonality * torch.stack(distances).mean()

    # --- saving: all entries, pruned or not -------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        with self._untrimmed():
            return super().state()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        with self._untrimmed():
            super().load(state)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        with self._untrimmed():
            super().save(folder)

    @contextmanager
    def _untrimmed(self) -> Iterator[None]:
        """Hide from PEFT's saving which entries are pruned: it would drop them."""
        schedule = self.schedule
        pattern, schedule.rank_pattern = schedule.rank_pattern, None
        try:
            yield
        finally:
            schedule.rank_pattern = pattern

    # --- going on after a break -------------------------------------------------------------

    def progress(self) -> dict[str, Tensor]:
        """Running importance and uncertainty of every weight, and what is pruned."""
        allocator = self.body.base_model.rankallocator
        pattern = self.schedule.rank_pattern or {}
        return {
            **{f"importance/{name}": tensor for name, tensor in allocator.exp_avg_ipt.items()},
            **{f"uncertainty/{name}": tensor for name, tensor in allocator.exp_avg_unc.items()},
            **{f"kept/{name}": torch.tensor(kept) for name, kept in pattern.items()},
        }

    def load_progress(self, progress: dict[str, Tensor]) -> None:
        """See `Adapter.load_progress`."""
        found: dict[str, dict[str, Tensor]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        device = self.body.device
        for key, tensor in progress.items():
            part, _, name = key.partition("/")
            found[part][name] = tensor.to(device)
        allocator = self.body.base_model.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = found["importance"], found["uncertainty"]
        allocator.ipt = {name: torch.zeros_like(t) for name, t in found["importance"].items()}
        kept = {name: tensor.tolist() for name, tensor in found["kept"].items()}
        self.schedule.rank_pattern = kept or None
