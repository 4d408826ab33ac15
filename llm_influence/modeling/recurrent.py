"""Recurrent backbones: GRU, LSTM and the gated recurrence of the classical formulation.

A recurrent backbone reads token by token and carries a state instead of attending. Tokens that are
hidden (removal ``mask``, padding) leave the state as it was. Everything around it, units, heads,
training, folder and explanations, is what transformers have. docs/recurrent.md has the equations.

The recurrence's own account of a history: how much of its state each event lets through.

An event's gate is the product of its tokens' gates. After the event, so much of what stood in the
state before it is still there, element by element; the rest is made of ``b`` alone. A gate says
what is forgotten, whatever was there and whichever target is asked: it is no influence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llm_influence.config.model import ModelConfig
from llm_influence.errors import ConfigError, ModelError
from llm_influence.modeling.backbone import Backbone, inference, load_backbone, refuse_missing
from llm_influence.rendering.batch import collate
from llm_influence.types import History

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


State: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""What a cell carries from token to token: (layers, B, H) states, of an LSTM with its cells', of
the recurrence with its last input vector."""


class RecurrentShape(PreTrainedConfig):
    """Sizes of a recurrent backbone, kept with its weights.

    ``vocab_size`` words have input vectors of their own (style ``text``); 0: none has.
    """

    model_type = "llm_influence_recurrent"

    cell: str = "gru"
    hidden_size: int = 128
    input_size: int = 128
    num_hidden_layers: int = 1
    dropout: float = 0.0
    vocab_size: int = 0


class GatedRecurrence(nn.Module):
    """``y_t = g_t * y_{t-1} + b`` with ``g_t = sigmoid(W0 h_t + W1 h_{t-1})``, element by element.

    h_t is the input vector of token t, h_0 is zero, y_0 is learned. Called like `torch.nn.GRU`
    with ``batch_first``. docs/recurrent.md says why the gate is read as a vector.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.now = nn.Linear(input_size, hidden_size, bias=False)
        self.before = nn.Linear(input_size, hidden_size, bias=False)
        self.bias = nn.Parameter(torch.randn(hidden_size))
        self.first = nn.Parameter(2 * self.bias.detach())  # where gates of one half leave it

    def gates(self, vectors: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, H) gates of (B, T, D) input vectors, which stood after the vector ``last``."""
        last = torch.zeros_like(vectors[:, 0]) if last is None else last
        shifted = torch.cat([last[:, None], vectors[:, :-1]], dim=1)
        return torch.sigmoid(self.now(vectors) + self.before(shifted))

    def forward(
        self, vectors: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, H) states after each of (B, T, D) input vectors, and what is carried on.

        Args:
            vectors: The input vectors.
            state: (B, H) last state and (B, D) last input vector.
        """
        y, last = (self.first.expand(len(vectors), -1), None) if state is None else state
        states = []
        for gate in self.gates(vectors, last).unbind(dim=1):
            y = gate * y + self.bias
            states.append(y)
        return torch.stack(states, dim=1), (y, vectors[:, -1])


class RecurrentCache:
    """What a recurrent backbone has read: its state instead of keys and values."""

    def __init__(self) -> None:
        self.state: State | None = None
        self._length = 0

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self._length

    def update(self, state: State, tokens: int) -> None:
        """Keep the state after ``tokens`` more tokens."""
        self.state, self._length = state, self._length + tokens


class RecurrentModel(PreTrainedModel):
    """One cell over input vectors, in float32: a state that is carried on loses digits in bf16."""

    config_class = RecurrentShape
    main_input_name: ClassVar[str] = "inputs_embeds"

    def __init__(self, config: RecurrentShape) -> None:
        super().__init__(config)
        sizes, layers = (config.input_size, config.hidden_size), config.num_hidden_layers
        words = config.vocab_size
        self.words = nn.Embedding(words, config.input_size) if words else None
        self.dropout = nn.Dropout(config.dropout)
        self.cell: nn.Module
        if config.cell == "recurrence":
            self.cell = GatedRecurrence(*sizes)
        else:
            between = {"num_layers": layers, "dropout": config.dropout if layers > 1 else 0.0}
            make = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
            self.cell = make(*sizes, batch_first=True, **between)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part starts as its own constructor starts it."""

    def get_input_embeddings(self) -> nn.Embedding | None:
        """Input vectors of the tokenizer's words; None where units stand in for all of them."""
        return self.words

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, cache: RecurrentCache | None = None
    ) -> BaseModelOutput:
        """States after every token.

        The visible tokens of each row are moved together, read, and their states put back; a
        hidden token has the state of the visible one before it.

        Args:
            inputs_embeds: (B, T, D) input vectors.
            attention_mask: (B, T) bool, False where a token is hidden.
            cache: What stood before these tokens; the state after them is kept in it.

        Raises:
            ValueError: A state is to be kept, and tokens are hidden.
        """
        if cache is not None and not attention_mask.all():
            raise ValueError("hidden tokens among those whose state is kept")
        first = torch.argsort(~attention_mask, dim=1, stable=True)
        vectors = torch.take_along_dim(inputs_embeds, first[..., None], dim=1)
        states, state = self._read(self.dropout(vectors), cache.state if cache else None)
        if cache is not None:
            cache.update(state, vectors.shape[1])
        at = attention_mask.cumsum(dim=1) - 1
        found = torch.take_along_dim(states, at.clamp(min=0)[..., None], dim=1)
        return BaseModelOutput(torch.where((at < 0)[..., None], self._start(found), found))

    def _read(self, vectors: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, T, H) states after (B, T, D) vectors, none of them hidden."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if vectors.device.type != "cuda":
                return self.cell(vectors, state)
            # in eval mode cuDNN keeps nothing for the backward pass that explanations take
            fused = self.training or not torch.is_grad_enabled()
            with torch.backends.cudnn.flags(enabled=fused, allow_tf32=False):
                return self.cell(vectors, state)

    def _start(self, like: Tensor) -> Tensor:
        """The state before any token."""
        if isinstance(self.cell, GatedRecurrence):
            return self.cell.first.to(like).expand_as(like)
        return torch.zeros_like(like)


def start_recurrent(config: ModelConfig, style: str) -> tuple[Backbone, Backbone | None]:
    """A recurrent backbone with random weights, and the transformer that reads the items' words.

    Args:
        config: Of the model; its ``backbone`` is ``gru``, ``lstm`` or ``recurrence``.
        style: Of rendering. ``text`` takes tokenizer and input vectors of the words from
            ``recurrent.words``.

    Raises:
        ConfigError: Style ``text`` without ``recurrent.words``.
        ModelError, AssetError: `load_backbone` cannot load ``recurrent.words``.
    """
    wanted = config.recurrent
    reader = load_backbone(wanted.words) if wanted.words else None
    words = None
    if style == "text":
        if reader is None:
            raise ConfigError(
                f"style 'text' with backbone {config.backbone!r}, which knows no words",
                where="rendering.style",
                expected="model.recurrent.words: whose tokenizer cuts the text",
                fix="set model.recurrent.words to minilm, or use style 'token'",
            )
        words = reader.model.get_input_embeddings().weight.detach()
    shape = RecurrentShape(
        cell=config.backbone,
        hidden_size=wanted.width,
        input_size=wanted.width if words is None else words.shape[1],
        num_hidden_layers=wanted.layers,
        dropout=config.dropout or 0.0,
        vocab_size=0 if words is None else len(words),
    )
    model = RecurrentModel(shape).eval()
    if words is not None and reader is not None:
        model.words = nn.Embedding.from_pretrained(words.clone(), freeze=False)
    tokenizer = reader.tokenizer if words is not None and reader is not None else None
    return Backbone(config.backbone, model, tokenizer, "recurrent"), reader


def load_recurrent(source: str, folder: Path) -> Backbone:
    """The backbone that was saved in ``folder``, which was started as ``source``.

    Raises:
        OSError, ValueError, RuntimeError: A file is missing or damaged.
        ModelError: A weight is missing.
    """
    model, report = RecurrentModel.from_pretrained(
        str(folder), dtype=torch.float32, output_loading_info=True
    )
    refuse_missing(report, str(folder))
    shape = PreTrainedConfig()  # nothing is known of us where tokenizers are looked up
    reads_text = model.words is not None
    tokenizer = AutoTokenizer.from_pretrained(str(folder), config=shape) if reads_text else None
    return Backbone(source, model.eval(), tokenizer, "recurrent")


def has_gates(model: InfluenceModel) -> bool:
    """Whether the model's backbone is the recurrence."""
    return isinstance(getattr(model.backbone.model, "cell", None), GatedRecurrence)


def event_gates(model: InfluenceModel, histories: Sequence[History]) -> list[Tensor]:
    """(E, H) gates of the events of each of the histories, which fit the context.

    Raises:
        ModelError: The backbone is another one than ``recurrence``.
    """
    cell = getattr(model.backbone.model, "cell", None)
    if not isinstance(cell, GatedRecurrence):
        raise ModelError(
            f"{model.backbone.source!r} has no such gates",
            where="gates, model.backbone",
            expected="backbone 'recurrence'",
            fix="train one, or ask a method of attribution",
        )
    batch = collate(model.encoder.encode(histories)).to(model.device)
    with inference(model):
        of_tokens = cell.gates(model.embed(batch).float())
        event = (batch.event_index + 1)[..., None].expand_as(of_tokens)  # 0: prompt and padding
        events = of_tokens.new_ones(len(histories), batch.ends.shape[1], of_tokens.shape[-1])
        events = events.scatter_reduce(1, event, of_tokens, "prod")
    return [row[1 : 1 + len(h)].cpu() for row, h in zip(events, histories, strict=True)]
