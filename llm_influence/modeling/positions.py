"""Positions of tokens: from the start or the end of a history, with a random offset in training.

The backbone learned an embedding of every absolute position. Without random offsets a model also
reads from them how long a history is, and every removal of an old event changes this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from llm_influence.config.model import ModelConfig
from llm_influence.errors import ModelError, out_of_range
from llm_influence.modeling.backbone import Backbone
from llm_influence.rendering.encoder import EncodedBatch, Encoder

PREDICTION_OFFSET = 10
"""Offset of predictions: pretrained backbones treat the first positions in a special way."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of the tokens of a batch.

    Attributes:
        first: Position of the first token in predictions, from the start.
        longest: Largest number of tokens of a history.
        from_end: Whether predictions give the last token of every history the same position.
        random_offset: Largest random offset in training; 0: training and predictions agree.
    """

    first: int
    longest: int
    from_end: bool
    random_offset: int

    @classmethod
    def of(cls, config: ModelConfig, backbone: Backbone, encoder: Encoder) -> Self:
        """The positions that a configuration asks for.

        Raises:
            ModelError: A random offset, but the backbone has no absolute positions, or its context
                is too short.
        """
        from_end, longest, offset = config.positions == "end", encoder.longest, 0
        if backbone.attends:
            room = backbone.context - longest if backbone.has_absolute_positions else 0
            offset = room if config.random_offset is None else config.random_offset
            if offset > room:
                raise _refused(config.random_offset, room, backbone, longest)
        first = backbone.first_position + min(offset, PREDICTION_OFFSET)
        return cls(first, longest, from_end, offset)

    def __call__(self, batch: EncodedBatch, *, random: bool = False) -> Tensor:
        """(B, T) or (1, T) position of every token. Hidden ones keep theirs: `mask` moves no token.

        Args:
            batch: B histories of T tokens.
            random: Training: every history is shifted by an offset of its own, drawn with torch's
                random generator of the CPU.
        """
        device = batch.input_ids.device
        places = torch.arange(batch.input_ids.shape[1], device=device)[None]
        if random and self.random_offset:
            drawn = torch.randint(self.random_offset + 1, (len(batch.input_ids), 1)).to(device)
            return self.first - min(self.random_offset, PREDICTION_OFFSET) + places + drawn
        if self.from_end:
            lengths = 1 + batch.ends.max(dim=1, keepdim=True).values
            last = self.longest - 1  # also the position of padding
            places = (places + self.longest - lengths).clamp(0, last)
        return self.first + places

    def fixed(self, *, random: bool) -> bool:
        """Whether a token's position stays when later events are added."""
        return not self.from_end or (random and self.random_offset > 0)


def _refused(value: int | None, room: int, backbone: Backbone, longest: int) -> ModelError:
    """The error for an offset that the backbone has no room for."""
    model_type = backbone.model.config.model_type
    if not backbone.has_absolute_positions:
        return ModelError(
            f"the backbone {backbone.source!r} ({model_type}) has no absolute positions",
            where=f"model.random_offset = {value}",
            expected="0 or null: with relative or rotary positions an offset changes nothing",
            fix="remove model.random_offset, or choose a backbone like minilm",
        )
    return out_of_range(
        ModelError,
        "model.random_offset",
        value,
        expected=f"0 to {max(room, 0)}: the context has {backbone.context} positions, a history "
        f"up to {longest} tokens",
        fix="set it to null for all the room there is, or lower rendering.max_events or max_tokens",
    )
