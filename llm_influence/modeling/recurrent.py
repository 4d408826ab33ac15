"""Recurrent backbones: GRU, LSTM and a gated recurrence.

A recurrent backbone reads token by token and carries a state. Hidden tokens (removal ``mask``,
padding) leave the state unchanged. Embeddings, heads, training, saving and explanations are those
of transformers.
docs/how-to/recurrent_backbones.md has the equations.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from llm_influence.config.model import WITHOUT, ModelConfig
from llm_influence.errors import ConfigError
from llm_influence.modeling.backbone import Backbone, load_backbone, refuse_missing
from llm_influence.rendering.encoder import EncodedBatch

State: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""State of a cell: (layers, B, H); an LSTM adds its cell state, the recurrence the last input."""


class RecurrentShape(PreTrainedConfig):
    """Sizes of a recurrent backbone, saved with its weights.

    ``vocab_size`` is the number of input embeddings (style ``text``); 0 for style ``token``.
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
    with ``batch_first``. docs/how-to/recurrent_backbones.md explains why the gate is a vector.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.now = nn.Linear(input_size, hidden_size, bias=False)
        self.before = nn.Linear(input_size, hidden_size, bias=False)
        self.bias = nn.Parameter(torch.randn(hidden_size))
        self.first = nn.Parameter(2 * self.bias.detach())  # fixed point for gates of 1/2

    def gates(self, vectors: Tensor, last: Tensor | None = None) -> Tensor:
        """(B, T, H) gates of (B, T, D) input vectors that follow the vector ``last``."""
        last = torch.zeros_like(vectors[:, 0]) if last is None else last
        shifted = torch.cat([last[:, None], vectors[:, :-1]], dim=1)
        return torch.sigmoid(self.now(vectors) + self.before(shifted))

    def forward(
        self, vectors: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, H) states after each of (B, T, D) input vectors, and the last state.

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


class Constant(nn.Module):
    """A learned state that does not depend on the history: the backbone ``none``.

    With it the item head learns popularity, and the memory adds what the events lead to.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(hidden_size))

    def forward(self, vectors: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, H) times the same state, and (B, H) the last one."""
        states = self.first.expand(*vectors.shape[:2], -1)
        return states, states[:, -1]


class RecurrentCache:
    """Cache of a recurrent backbone: its state, in place of keys and values."""

    def __init__(self) -> None:
        self.state: State | None = None
        self._length = 0

    def get_seq_length(self) -> int:
        """Number of tokens read so far."""
        return self._length

    def update(self, state: State, tokens: int) -> None:
        """Store the state after ``tokens`` more tokens."""
        self.state, self._length = state, self._length + tokens


class RecurrentModel(PreTrainedModel):
    """One cell over input vectors, in float32: a carried state loses too many digits in bf16."""

    config_class = RecurrentShape
    main_input_name: ClassVar[str] = "inputs_embeds"

    def __init__(self, config: RecurrentShape) -> None:
        super().__init__(config)
        sizes, layers = (config.input_size, config.hidden_size), config.num_hidden_layers
        words = config.vocab_size
        self.words = nn.Embedding(words, config.input_size) if words else None
        self.dropout = nn.Dropout(config.dropout)
        self.cell: nn.Module
        if config.cell == WITHOUT:
            self.cell = Constant(config.hidden_size)
        elif config.cell == "recurrence":
            self.cell = GatedRecurrence(*sizes)
        else:
            between = {"num_layers": layers, "dropout": config.dropout if layers > 1 else 0.0}
            make = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
            self.cell = make(*sizes, batch_first=True, **between)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep the initialisation of the parts' own constructors."""

    def get_input_embeddings(self) -> nn.Embedding | None:
        """Input embeddings of the tokenizer's tokens; None for style ``token``."""
        return self.words

    def new_cache(self) -> RecurrentCache:
        """An empty cache."""
        return RecurrentCache()

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, cache: RecurrentCache | None = None
    ) -> BaseModelOutput:
        """States after every token.

        A hidden token has the state of the visible token before it.

        Args:
            inputs_embeds: (B, T, D) input vectors.
            attention_mask: (B, T) bool, False where a token is hidden.
            cache: Cache of the tokens before; the state after these tokens is stored in it.

        Raises:
            ValueError: There is a cache, and tokens are hidden.
        """
        if cache is not None and not attention_mask.all():
            raise ValueError("a cache does not work with hidden tokens")
        first = torch.argsort(~attention_mask, dim=1, stable=True)
        vectors = torch.take_along_dim(inputs_embeds, first[..., None], dim=1)
        states, state = self._read(self.dropout(vectors), cache.state if cache else None)
        if cache is not None:
            cache.update(state, vectors.shape[1])
        at = attention_mask.cumsum(dim=1) - 1
        states = torch.take_along_dim(states, at.clamp(min=0)[..., None], dim=1)
        return BaseModelOutput(torch.where((at < 0)[..., None], self._start(states), states))

    def _read(self, vectors: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, T, H) states after (B, T, D) vectors, none of them hidden."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if vectors.device.type != "cuda":
                return self.cell(vectors, state)
            # in eval mode cuDNN cannot run backward, which gradient explanations need
            fused = self.training or not torch.is_grad_enabled()
            with torch.backends.cudnn.flags(enabled=fused, allow_tf32=False):
                return self.cell(vectors, state)

    def _start(self, like: Tensor) -> Tensor:
        """The state before any token."""
        if isinstance(self.cell, GatedRecurrence | Constant):
            return self.cell.first.to(like).expand_as(like)
        return torch.zeros_like(like)


def start_recurrent(config: ModelConfig, style: str) -> tuple[Backbone, Backbone | None]:
    """A recurrent backbone with random weights, and the transformer that reads the items' texts.

    Args:
        config: Options of the model; ``backbone`` is ``gru``, ``lstm``, ``recurrence`` or ``none``.
        style: Rendering style. ``text`` takes tokenizer and input embeddings from
            ``recurrent.words``.

    Returns:
        The backbone, and the transformer ``recurrent.words``; None without it.

    Raises:
        ConfigError: Style ``text`` without ``recurrent.words``.
        ModelError, AssetError: `load_backbone` cannot load ``recurrent.words``.
    """
    options = config.recurrent
    reader = load_backbone(options.words) if options.words else None
    words = None
    if style == "text":
        if reader is None:
            raise ConfigError(
                f"style 'text' with backbone {config.backbone!r}, which has no tokenizer",
                where="rendering.style",
                expected="model.recurrent.words, a transformer whose tokenizer is used",
                fix="set model.recurrent.words to minilm, or use style 'token'",
            )
        words = reader.model.get_input_embeddings().weight.detach()
    shape = RecurrentShape(
        cell=config.backbone,
        hidden_size=options.width,
        input_size=options.width if words is None else words.shape[1],
        num_hidden_layers=options.layers,
        dropout=config.dropout or 0.0,
        vocab_size=0 if words is None else len(words),
    )
    model = RecurrentModel(shape).eval()
    if words is not None and reader is not None:
        model.words = nn.Embedding.from_pretrained(words.clone(), freeze=False)
    tokenizer = reader.tokenizer if words is not None and reader is not None else None
    return Backbone(config.backbone, model, tokenizer, "recurrent"), reader


def load_recurrent(source: str, folder: Path) -> Backbone:
    """Load the backbone ``source`` from the folder where it was saved.

    Raises:
        OSError, ValueError, RuntimeError: A file is missing or damaged.
        ModelError: A weight is missing.
    """
    model, report = RecurrentModel.from_pretrained(
        str(folder), dtype=torch.float32, output_loading_info=True
    )
    refuse_missing(report, str(folder))
    shape = PreTrainedConfig()  # transformers has no entry for RecurrentShape
    reads_text = model.words is not None
    tokenizer = (
        AutoTokenizer.from_pretrained(str(folder), config=shape, trust_remote_code=False)
        if reads_text
        else None
    )
    return Backbone(source, model.eval(), tokenizer, "recurrent")


def event_gates(cell: GatedRecurrence, vectors: Tensor, batch: EncodedBatch) -> Tensor:
    """(B, E, H) gates of the events: the product of the gates of an event's tokens.

    After an event this share of the former state is left, element by element; the rest is ``b``.
    A gate does not depend on a target, so it is not an influence.

    Args:
        cell: The recurrence.
        vectors: (B, T, D) input vectors.
        batch: B histories of T tokens.
    """
    of_tokens = cell.gates(vectors.float())
    event = (batch.event_index + 1)[..., None].expand_as(of_tokens)  # 0: prompt and padding
    gates = of_tokens.new_ones(len(of_tokens), batch.ends.shape[1], of_tokens.shape[-1])
    return gates.scatter_reduce(1, event, of_tokens, "prod")[:, 1:]
