"""Bottleneck adapters: small networks between the layers of a frozen backbone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from llm_influence.config import AdapterConfig
from llm_influence.files import write_text
from llm_influence.modeling.adapters.adapter import DESCRIPTION, TENSORS, Adapter, register
from llm_influence.modeling.adapters.places import layer_places, named_places, output_size


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
