"""Where in a backbone an adapter goes, found by structure, not by architecture.

A transformer layer holds linear maps in the order of their use. Those under a part whose name
contains "att" (attention, attn, self_attn) are the attention's, the last of them its output
projection; of the others, the last is the feed-forward block's output projection.

What every kind of adapter promises, and the registry of kinds.

What the kinds that PEFT computes share.

Low-rank updates of weight matrices: LoRA and two changes of it.

(IA)3: learned scales of what the attention and the feed-forward blocks compute with.

AdaLoRA: low-rank updates whose ranks are pruned, where they matter least, during training.

The two ends: the whole backbone is trained, or nothing of it.

Bottleneck adapters: small networks between the layers of a frozen backbone.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm_influence.config.model import AdapterConfig
from llm_influence.errors import ConfigError, ModelError
from llm_influence.utils import write_text


@dataclass(frozen=True, slots=True)
class LayerPlaces:
    """Full names of one layer's linear maps.

    Attributes:
        attention_inputs: What makes queries, keys and values, apart or in one.
        attention_output: Back from the heads to the residual stream.
        feed_forward_output: Back from the wide activations to the residual stream.
    """

    attention_inputs: tuple[str, ...]
    attention_output: str
    feed_forward_output: str


def in_pooler(name: str) -> bool:
    """Whether a name lies in BERT's pooler, a task head that no state of ours passes through."""
    return "pooler" in name


def in_attention(name: str) -> bool:
    """Whether a module of this full name is a part of an attention block."""
    return any("att" in part for part in name.split("."))


def linear_maps(model: nn.Module) -> dict[str, nn.Module]:
    """Linear maps by full name, in order; GPT-2's ``Conv1D`` is one, transposed."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not in_pooler(name)
    }


def output_size(module: nn.Module) -> int:
    """Size of what a linear map gives."""
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]


def is_transposed(model: nn.Module) -> bool:
    """Whether the linear maps store their weights as (in, out); PEFT wants to be told."""
    return any(isinstance(module, Conv1D) for module in linear_maps(model).values())


def layer_places(model: PreTrainedModel) -> list[LayerPlaces]:
    """The places in every layer.

    Raises:
        ModelError: The backbone is built in another way.
    """
    count, width = model.config.num_hidden_layers, model.config.hidden_size
    stacks = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    )
    stack, layers = next(stacks, ("", nn.ModuleList()))
    places = []
    for number, layer in enumerate(layers):
        maps = linear_maps(layer)
        attention = [name for name in maps if in_attention(name)]
        others = [name for name in maps if not in_attention(name)]
        outputs = [names[-1] for names in (attention, others) if names]
        if len(outputs) < 2 or any(output_size(maps[name]) != width for name in outputs):
            raise _built_otherwise(model, f"layer {number} has the linear maps {list(maps)}")
        start = f"{stack}.{number}."
        inputs = tuple(start + name for name in attention[:-1])
        places.append(LayerPlaces(inputs, start + attention[-1], start + others[-1]))
    if not places:
        raise _built_otherwise(model, f"no list of {count} layers was found")
    return places


def named_places(model: PreTrainedModel, targets: str | list[str]) -> list[str]:
    """Full names of the linear maps that ``targets`` names, by the rules of PEFT.

    Args:
        model: The backbone.
        targets: "all-linear", a regular expression of whole names, or a list of names or of
            their last parts.

    Raises:
        ModelError: None is named.
    """
    maps = linear_maps(model)
    if targets == "all-linear":
        found = list(maps)
    elif isinstance(targets, str):
        found = [name for name in maps if re.fullmatch(targets, name)]
    else:
        found = [name for name in maps if any(f".{name}".endswith(f".{t}") for t in targets)]
    if not found:
        raise wrong_targets(f"No modules match {targets!r}")
    return found


def wrong_targets(found: str) -> ModelError:
    """The error of targets that are not there."""
    return ModelError(
        found,
        where="model.adapter.targets",
        expected="'all-linear', or names of linear layers of the backbone",
        fix="print(backbone) shows its modules' names",
    )


def _built_otherwise(model: PreTrainedModel, found: str) -> ModelError:
    return ModelError(
        found,
        where=f"{type(model).__name__}, model.adapter.targets not given",
        expected="layers with an attention and a feed-forward block, each ending in a linear map",
        fix="name the modules in model.adapter.targets, or train model.adapter.kind 'lora'",
    )


Body: TypeAlias = PreTrainedModel | PeftModel
"""A backbone, with an adapter on it or without."""

TENSORS, DESCRIPTION = "adapter_model.safetensors", "adapter_config.json"
"""Files of a saved adapter; the names are PEFT's."""


class Adapter(ABC):
    """One backbone with what is trained inside it.

    Attributes:
        body: What computes the states; called like the backbone itself.
        saved_in: The part of a model folder that holds what was trained here, if anything.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "adapter"
    body: Body

    @classmethod
    @abstractmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """Put a fresh adapter on a backbone, whose parameters all require no gradient.

        Raises:
            ModelError: The adapter finds no place in this backbone.
        """

    @classmethod
    @abstractmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """Put a saved adapter back on its backbone."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """The untuned backbone, for as long as the context lasts.

        Raises:
            ModelError: There is no untuned backbone left.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What training changes, by its names on disk."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Put the tensors of `state` back, in place."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `state` and what `restore` has to know; nothing unless saved in "adapter"."""

    @abstractmethod
    def backbone_state(self) -> dict[str, Tensor]:
        """State of the backbone under the names it has without an adapter."""

    # --- a schedule of its own: only kinds that change while they train have one ----------

    def begin(self, total_steps: int) -> None:  # noqa: B027 - most kinds have no schedule
        """Hear how many optimiser steps the run has, before its first one.

        Raises:
            ConfigError: Too few for the kind's schedule.
        """

    def after_step(self, step: int) -> None:  # noqa: B027
        """Follow optimiser step ``step``, counted from 1, while its gradients are still there."""

    def penalty(self) -> Tensor | None:
        """A term of the loss that belongs to the kind."""
        return None

    def progress(self) -> dict[str, Tensor]:
        """What the schedule has gathered so far: a run that goes on needs it, a model does not."""
        return {}

    def load_progress(self, progress: dict[str, Tensor]) -> None:  # noqa: B027
        """Put back what `progress` gave."""


KINDS: dict[str, type[Adapter]] = {}
"""Every kind by the name that ``model.adapter.kind`` gives it."""


def register(kind: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Make a class the adapter of kind ``kind``; a class may serve several kinds."""

    def keep(adapter: type[Adapter]) -> type[Adapter]:
        KINDS[kind] = adapter
        return adapter

    return keep


def attach_adapter(model: PreTrainedModel, config: AdapterConfig) -> Adapter:
    """Freeze the backbone and put on it the adapter that ``config`` names.

    Raises:
        ModelError: The adapter finds no place in this backbone.
    """
    return KINDS[config.kind].attach(model.requires_grad_(False), config)


_NOT_THE_BACKBONES = ("lora_", "ia3_", ".ranknum.")
"""Marks of the tensors that PEFT's layers keep beside the backbone's own."""


class PeftAdapter(Adapter):
    """An adapter that PEFT puts around linear maps, saved as PEFT writes it."""

    body: PeftModel

    def __init__(self, body: PeftModel, config: AdapterConfig) -> None:
        self.body, self.config = body, config

    @classmethod
    @abstractmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """PEFT's own configuration of this kind on this backbone."""

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        wanted = cls.peft_config(model, config)
        try:
            return cls(get_peft_model(model, wanted), config)
        except ValueError as error:
            raise wrong_targets(str(error)) from error

    @classmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """See `Adapter.restore`."""
        return cls(PeftModel.from_pretrained(model, str(folder), is_trainable=True), config)

    def off(self) -> AbstractContextManager[None]:
        """See `Adapter.off`."""
        return self.body.disable_adapter()

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        return get_peft_model_state_dict(self.body)

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        set_peft_model_state_dict(self.body, state)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        self.body.save_pretrained(str(folder))

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Adapter.backbone_state`."""
        return {
            name.replace("base_layer.", ""): tensor
            for name, tensor in self.body.get_base_model().state_dict().items()
            if not any(mark in name for mark in _NOT_THE_BACKBONES)
        }


@register("lora")
@register("dora")
@register("rslora")
class LowRank(PeftAdapter):
    """``W + alpha / rank * B A`` with B zero at first.

    ``lora`` is Hu et al. 2021 (arXiv:2106.09685). ``dora`` learns the length of every row of W
    apart from its direction (Liu et al. 2024, arXiv:2402.09353). ``rslora`` divides alpha by the
    root of the rank, so that high ranks learn as fast as low ones (Kalajdzievski 2023,
    arXiv:2312.03732).
    """

    @classmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """See `PeftAdapter.peft_config`."""
        return LoraConfig(
            r=config.rank,
            use_dora=config.kind == "dora",
            use_rslora=config.kind == "rslora",
            **shared_options(model, config),
        )


def shared_options(model: PreTrainedModel, config: AdapterConfig) -> dict[str, Any]:
    """Options that mean the same for every low-rank kind."""
    return {
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets or "all-linear",
        "exclude_modules": [n for n, _ in model.named_modules() if in_pooler(n)] or None,
        "fan_in_fan_out": is_transposed(model),
    }


@register("ia3")
class IA3(PeftAdapter):
    """Keys, values and wide feed-forward activations times learned vectors (Liu et al. 2022).

    arXiv:2205.05638. The vectors start at one. Where queries, keys and values come out of one
    matrix, all three are scaled: a scale of queries does what the same scale of keys does.
    """

    @classmethod
    def peft_config(cls, model: PreTrainedModel, config: AdapterConfig) -> PeftConfig:
        """See `PeftAdapter.peft_config`."""
        if config.targets is None:
            layers = layer_places(model)
            names = [name for layer in layers for name in _keys_and_values(layer)]
            names += [layer.feed_forward_output for layer in layers]
        else:
            names = named_places(model, config.targets)
        maps, width = linear_maps(model), model.config.hidden_size
        # what leads back to the residual stream is scaled where it is still wide: at its input
        narrow = [n for n in names if not in_attention(n) and output_size(maps[n]) == width]
        return IA3Config(
            target_modules=_any_of(names),
            feedforward_modules=_any_of(narrow),
            fan_in_fan_out=is_transposed(model),
        )


def _keys_and_values(layer: LayerPlaces) -> tuple[str, ...]:
    """Maps that make keys and values: by initial (key, k_proj, k_lin), or one map of everything."""
    by_initial = {name: name.rpartition(".")[2][0].lower() for name in layer.attention_inputs}
    found = tuple(name for name, initial in by_initial.items() if initial in "kv")
    if {by_initial[name] for name in found} == {"k", "v"}:
        return found
    if len(layer.attention_inputs) == 1:
        return layer.attention_inputs
    raise ModelError(
        f"keys and values cannot be told among {list(layer.attention_inputs)}",
        where="model.adapter.kind = 'ia3', model.adapter.targets not given",
        expected="modules named k... and v..., or one that makes queries, keys and values",
        fix="name the modules in model.adapter.targets",
    )


def _any_of(names: list[str]) -> str:
    return "|".join(map(re.escape, names)) or r"(?!)"  # without names: nothing matches


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


@register("frozen")
class Frozen(Adapter):
    """Nothing of the backbone is trained; unit vectors and heads are."""

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = None
    body: PreTrainedModel

    def __init__(self, model: PreTrainedModel) -> None:
        self.body = model

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        return cls(model)

    @classmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """A backbone read from its own folder is complete."""
        return cls.attach(model, config)

    def off(self) -> AbstractContextManager[None]:
        """Nothing to switch off."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing to put back."""

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Adapter.backbone_state`."""
        return self.body.state_dict()


@register("full")
class Full(Frozen):
    """The whole backbone is trained.

    Its weights are saved as the folder's backbone, in checkpoints too. The untuned ones are gone
    after the first step, and nothing that needs them works any more.
    """

    saved_in: ClassVar[Literal["adapter", "backbone"] | None] = "backbone"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not in_pooler(name))
        return cls(model)

    def off(self) -> AbstractContextManager[None]:
        """Refused: see the class."""
        raise ModelError(
            "the backbone itself was tuned, so there is no untuned one left",
            where="model.adapter.kind = 'full'",
            expected="an adapter that can be switched off (new items get their vectors from the "
            "untuned backbone)",
            fix="put all items into the item table before training, or train another kind",
        )

    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return self.body.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        self.body.load_state_dict(state)


class Bottleneck(nn.Module):
    """``x + up(gelu(down(x)))``; ``up`` starts at zero, so that at first x passes unchanged."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.active = True
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) from (..., size)."""
        return x + self.up(F.gelu(self.down(x))) if self.active else x


@register("bottleneck")
class BottleneckAdapter(Adapter):
    """A bottleneck after both output projections of every layer (Houlsby et al. 2019).

    arXiv:1902.00751. Each bottleneck is a submodule of the projection whose output it changes, so
    that it moves, counts and saves with the backbone; the backbone keeps its class and names.
    """

    body: PreTrainedModel

    def __init__(self, model: PreTrainedModel, places: Sequence[str], width: int) -> None:
        self.body, self.places, self.width = model, list(places), width
        for name in places:
            module = model.get_submodule(name)
            inserted = Bottleneck(output_size(module), width).to(model.device)
            module.add_module("bottleneck", inserted)
            module.register_forward_hook(_through_bottleneck)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig) -> Self:
        """See `Adapter.attach`."""
        if config.targets is not None:
            return cls(model, named_places(model, config.targets), config.width)
        layers = layer_places(model)
        places = [
            n for layer in layers for n in (layer.attention_output, layer.feed_forward_output)
        ]
        return cls(model, places, config.width)

    @classmethod
    def restore(cls, model: PreTrainedModel, config: AdapterConfig, folder: Path) -> Self:
        """Bottlenecks where they were when saved, to be filled by `load`."""
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return cls(model, described["places"], described["width"])

    @contextmanager
    def off(self) -> Iterator[None]:
        """See `Adapter.off`."""
        self._switch(active=False)
        try:
            yield
        finally:
            self._switch(active=True)

    def state(self) -> dict[str, Tensor]:
        """See `Adapter.state`."""
        state = self.body.state_dict()
        return {name: tensor for name, tensor in state.items() if ".bottleneck." in name}

    def load(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load`."""
        self.body.load_state_dict(state, strict=False)

    def save(self, folder: Path) -> None:
        """See `Adapter.save`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state().items()}, folder / TENSORS
        )
        described = {"kind": "bottleneck", "width": self.width, "places": self.places}
        write_text(folder / DESCRIPTION, json.dumps(described, indent=2) + "\n")

    def backbone_state(self) -> dict[str, Tensor]:
        """See `Adapter.backbone_state`."""
        state = self.body.state_dict()
        return {name: tensor for name, tensor in state.items() if ".bottleneck." not in name}

    def _switch(self, *, active: bool) -> None:
        for module in self.body.modules():
            if isinstance(module, Bottleneck):
                module.active = active


def _through_bottleneck(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The hook on a projection: what it gave goes through the bottleneck it holds."""
    return module.get_submodule("bottleneck")(output)
