"""Adapters: the part of a backbone that is trained, by `model.adapter.kind`.

Kinds of PEFT: ``lora`` (Hu et al. 2021, arXiv:2106.09685), ``dora`` (Liu et al. 2024,
arXiv:2402.09353), ``rslora`` (Kalajdzievski 2023, arXiv:2312.03732), ``adalora`` (Zhang et al.
2023, arXiv:2303.10512), ``ia3`` (Liu et al. 2022, arXiv:2205.05638). Own kinds: ``frozen``,
``full``, ``bottleneck`` (Houlsby et al. 2019, arXiv:1902.00751).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import peft
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from llm_influence.config.model import AdapterConfig
from llm_influence.errors import ConfigError, ModelError, unknown
from llm_influence.modeling.layers import (
    Bottleneck,
    ia3_places,
    is_transposed,
    layer_places,
    named_places,
    output_size,
    wrong_targets,
)
from llm_influence.utils import write_text

Body: TypeAlias = PreTrainedModel | PeftModel
"""A backbone with or without an adapter."""
TENSORS, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json"
"""Files of a saved adapter, named as in PEFT."""
_BESIDE_BACKBONE = ("lora_", "ia3_", ".ranknum.", ".bottleneck.")
"""Marks of tensors that do not belong to the backbone itself."""


class Adapter:
    """A backbone and what is trained in it; as it stands, the kind ``frozen``.

    Attributes:
        body: Module that computes the states, called like the backbone itself.
        saved_in: Part of a model folder with the trained weights; None if nothing is trained.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = None
    body: Body

    def __init__(self, body: Body) -> None:
        self.body = body

    @classmethod
    def attach(
        cls, model: PreTrainedModel, config: AdapterConfig, folder: Path | None = None
    ) -> Self:
        """Put an adapter on a backbone without trainable parameters.

        With a ``folder`` it is the adapter saved there, whose weights `load` sets.

        Raises:
            ModelError: The backbone has no place for the adapter.
            ConfigError: An option of ``model.adapter.peft`` is wrong.
        """
        return cls(model)

    def off(self) -> AbstractContextManager[None]:
        """Context in which the backbone is untuned.

        Raises:
            ModelError: The untuned backbone is lost.
        """
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Trained tensors by their names on disk."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set the tensors of `state` in place."""

    def save(self, folder: Path) -> None:
        """Write `state` and what `restore` needs, if ``saved_in`` is "adapter"."""

    def backbone_state(self) -> dict[str, Tensor]:
        """State of the backbone under its names without an adapter."""
        body = self.body.get_base_model() if isinstance(self.body, PeftModel) else self.body
        return {
            name.replace("base_layer.", ""): tensor
            for name, tensor in body.state_dict().items()
            if not any(mark in name for mark in _BESIDE_BACKBONE)
        }

    # --- schedule during training (adalora) -------------------------------------------------

    def begin(self, total_steps: int) -> None:
        """Set up the schedule before the first step; `ConfigError` for too short a run."""

    def after_step(self, step: int) -> None:
        """Advance the schedule after optimiser step ``step`` (from 1), with its gradients."""

    def penalty(self) -> Tensor | None:
        """A term of the loss that belongs to the kind."""
        return None

    def progress(self) -> dict[str, Tensor]:
        """State of the schedule, which only a continued run needs."""
        return {}

    def load_progress(self, progress: dict[str, Tensor]) -> None:
        """Set the state of the schedule."""


class Full(Adapter):
    """Trains the whole backbone, which is saved in the folder's ``backbone/``."""

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "backbone"

    @classmethod
    def attach(
        cls, model: PreTrainedModel, config: AdapterConfig, folder: Path | None = None
    ) -> Self:
        """See `Adapter.attach`."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("pooler" not in name)
        return cls(model)

    def off(self) -> AbstractContextManager[None]:
        """See `Adapter.off`; always refused."""
        raise ModelError(
            "the backbone itself was tuned, so there is no untuned one left",
            where="model.adapter.kind = 'full'",
            expected="an adapter that can be switched off, as new items need the untuned backbone",
            fix="put all items into the item table before training, or train another kind",
        )

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        return self.body.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        self.body.load_state_dict(state)


class PeftAdapter(Adapter):
    """An adapter of PEFT, made by the kind's entry of `PEFT_CONFIGS` and saved by PEFT."""

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "adapter"
    body: PeftModel

    def __init__(self, body: PeftModel, config: AdapterConfig) -> None:
        super().__init__(body)
        self.config = config

    @classmethod
    def attach(
        cls, model: PreTrainedModel, config: AdapterConfig, folder: Path | None = None
    ) -> Self:
        """See `Adapter.attach`."""
        if folder is not None:
            return cls(PeftModel.from_pretrained(model, str(folder), is_trainable=True), config)
        peft_config = PEFT_CONFIGS[config.kind](model, config)
        try:
            return cls(peft.get_peft_model(model, peft_config), config)
        except ValueError as error:
            raise wrong_targets(str(error)) from error

    @property
    def peft_config(self) -> Any:  # noqa: ANN401 - one class for each kind
        """PEFT's configuration of the adapter."""
        return self.body.peft_config["default"]

    def off(self) -> AbstractContextManager[None]:
        """See `Adapter.off`."""
        return self.body.disable_adapter()

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        with self._untrimmed():
            return peft.get_peft_model_state_dict(self.body, save_embedding_layers=False)

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        with self._untrimmed():
            peft.set_peft_model_state_dict(self.body, state)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        with self._untrimmed():
            self.body.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card; a model has its own

    def _untrimmed(self) -> AbstractContextManager[None]:
        """Context in which PEFT saves every entry of the adapter."""
        return nullcontext()


class AdaLora(PeftAdapter):
    """``W + alpha / r * B E A`` with a diagonal E whose entries are pruned during training."""

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
        config = self.peft_config
        config.total_step, config.tinit, config.tfinal = total_steps, first, total_steps - last
        config.deltaT = max(1, round(self.config.prune_every * total_steps))

    def after_step(self, step: int) -> None:
        """See `Adapter.after_step`; PEFT reads the gradients for importance, and prunes."""
        self.body.base_model.update_and_allocate(step)

    def penalty(self) -> Tensor | None:
        """Weighted mean over all A and B of ``||A A' - I||`` and ``||B' B - I||`` (Frobenius)."""
        distances = []
        for name, parameter in self.body.get_base_model().named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                rows = parameter if ".lora_A." in name else parameter.T
                identity = torch.eye(len(rows), device=rows.device, dtype=rows.dtype)
                distances.append(torch.linalg.matrix_norm(rows @ rows.T - identity))
        return self.config.orthogonality * torch.stack(distances).mean()

    @contextmanager
    def _untrimmed(self) -> Iterator[None]:
        """Hide pruned entries, which may return later, from PEFT: they are saved as zeros."""
        config = self.peft_config
        pattern, config.rank_pattern = config.rank_pattern, None
        try:
            yield
        finally:
            config.rank_pattern = pattern

    def progress(self) -> dict[str, Tensor]:
        """See `Adapter.progress`: importance and uncertainty of weights, and entries kept."""
        allocator = self.body.base_model.rankallocator
        kept = (self.peft_config.rank_pattern or {}).items()
        parts = {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}
        parts["kept"] = {name: torch.tensor(entries) for name, entries in kept}
        return {f"{part}/{n}": t for part, tensors in parts.items() for n, t in tensors.items()}

    def load_progress(self, progress: dict[str, Tensor]) -> None:
        """See `Adapter.load_progress`."""
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "uncertainty": {}, "kept": {}}
        for key, tensor in progress.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor.to(self.body.device)
        allocator = self.body.base_model.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = parts["importance"], parts["uncertainty"]
        allocator.ipt = {name: torch.zeros_like(t) for name, t in parts["importance"].items()}
        kept = {name: tensor.tolist() for name, tensor in parts["kept"].items()}
        self.peft_config.rank_pattern = kept or None


class BottleneckAdapter(Adapter):
    """A bottleneck after both output projections of every layer.

    Each bottleneck is a submodule of the projection whose output it changes, so the backbone keeps
    its class and names.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "adapter"

    def __init__(self, model: PreTrainedModel, places: Sequence[str], width: int) -> None:
        super().__init__(model)
        self.places, self.width = list(places), width
        for name in places:
            module = model.get_submodule(name)
            module.add_module("bottleneck", Bottleneck(output_size(module), width).to(model.device))
            module.register_forward_hook(lambda module, _, output: module.bottleneck(output))

    @classmethod
    def attach(
        cls, model: PreTrainedModel, config: AdapterConfig, folder: Path | None = None
    ) -> Self:
        """See `Adapter.attach`."""
        if folder is not None:
            described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            return cls(model, described["places"], described["width"])
        if config.targets is not None:
            return cls(model, named_places(model, config.targets), config.width)
        outputs = [(p.attention_output, p.feed_forward_output) for p in layer_places(model)]
        return cls(model, [name for pair in outputs for name in pair], config.width)

    @contextmanager
    def off(self) -> Iterator[None]:
        """See `Adapter.off`."""
        bottlenecks = [m for m in self.body.modules() if isinstance(m, Bottleneck)]
        for module in bottlenecks:
            module.active = False
        try:
            yield
        finally:
            for module in bottlenecks:
                module.active = True

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        state = self.body.state_dict()
        return {name: t.contiguous() for name, t in state.items() if ".bottleneck." in name}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        self.body.load_state_dict(state, strict=False)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state(), folder / TENSORS)
        described = {"kind": "bottleneck", "width": self.width, "places": self.places}
        write_text(folder / DESCRIPTION, json.dumps(described, indent=2) + "\n")


def _lora(model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
    """``W + alpha / rank * B A`` with B zero at first, and its variants."""
    variants = {"use_dora": config.kind == "dora", "use_rslora": config.kind == "rslora"}
    return _checked(peft.LoraConfig, config, r=config.rank, **variants, **_low_rank(model, config))


def _adalora(model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
    """AdaLoRA; `AdaLora.begin` sets the schedule."""
    own = _low_rank(model, config) | {"init_r": config.first_rank, "target_r": config.rank}
    own |= {"orth_reg_weight": config.orthogonality, "total_step": 1}
    return _checked(peft.AdaLoraConfig, config, **own)


def _low_rank(model: PreTrainedModel, config: AdapterConfig) -> dict[str, Any]:
    return {
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets or "all-linear",
        "exclude_modules": [n for n, _ in model.named_modules() if "pooler" in n] or None,
        "fan_in_fan_out": is_transposed(model),
    }


def _ia3(model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
    """Learned scales of keys, values and wide feed-forward activations, one at first."""
    names, narrow = ia3_places(model, config.targets)
    modules = {"target_modules": names, "feedforward_modules": narrow}
    patterns = {key: "|".join(map(re.escape, n)) or r"(?!)" for key, n in modules.items()}
    return _checked(peft.IA3Config, config, **patterns, fan_in_fan_out=is_transposed(model))


def _checked(kind: type[PeftConfig], config: AdapterConfig, **own: Any) -> PeftConfig:  # noqa: ANN401
    """A PEFT configuration with the extra options of ``model.adapter.peft``."""
    free = {field.name for field in fields(kind) if field.init} - own.keys()
    for name in config.peft:
        if name not in free:
            what, where = f"or reserved {kind.__name__} option", f"model.adapter.peft.{name}"
            raise unknown(ConfigError, what, name, free, where=where)
    try:
        return kind(**own, **config.peft)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"refused by {kind.__name__} ({error})",
            where=f"model.adapter.peft: {', '.join(config.peft)}",
            expected=f"values that peft.{kind.__name__} accepts",
            fix="correct or remove these options",
        ) from error


PEFT_CONFIGS: dict[str, Callable[[PreTrainedModel, AdapterConfig], PeftConfig]] = {
    **dict.fromkeys(("lora", "dora", "rslora"), _lora),
    **{"adalora": _adalora, "ia3": _ia3},
}
"""Function that makes PEFT's configuration, by kind."""
KINDS: dict[str, type[Adapter]] = {
    **dict.fromkeys(PEFT_CONFIGS, PeftAdapter),
    **{"adalora": AdaLora, "bottleneck": BottleneckAdapter, "full": Full, "frozen": Adapter},
}
"""Class of every kind of ``model.adapter.kind``."""


def attach_adapter(model: PreTrainedModel, config: AdapterConfig) -> Adapter:
    """Freeze the backbone and put the adapter of ``config`` on it; errors as `Adapter.attach`."""
    return KINDS[config.kind].attach(model.requires_grad_(requires_grad=False), config)
