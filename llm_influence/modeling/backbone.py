"""Backbones: loading a pretrained transformer, attention masks, inference mode."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from llm_influence.datasets.assets import asset_path
from llm_influence.errors import ModelError, choices
from llm_influence.rendering.encoder import EncodedBatch


def on_cpu() -> bool:
    """Whether there is no accelerator."""
    return not torch.accelerator.is_available()


def event_causal_mask(batch: EncodedBatch) -> Tensor:
    """Mask in which every token sees the visible tokens of its own and of earlier events.

    The prompt counts as an earlier event. With this mask an encoder's state after an event does
    not depend on later events, so one run predicts after every event. Every token also sees
    itself, so that no row of the softmax is empty at padding.

    Returns:
        (B, 1, T, T) bool, True where row may attend to column.
    """
    event = batch.event_index
    allowed = batch.attention_mask[:, None, :] & (event[:, None, :] <= event[:, :, None])
    itself = torch.eye(event.shape[1], dtype=torch.bool, device=event.device)
    return (allowed | itself)[:, None]


def encoder_masks(
    batch: EncodedBatch,
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
    queries: int,
) -> Tensor | dict[str, Tensor]:
    """The event-causal mask in the format of an encoder.

    Args:
        batch: B histories of T tokens.
        config: The backbone's configuration.
        dtype: Data type of the input vectors.
        queries: Number Q of tokens at the end whose states are computed.

    Returns:
        (B, 1, Q, T), or such a mask for each layer type.
    """
    mask = event_causal_mask(batch)[:, :, -queries:]
    places = torch.arange(mask.shape[-1], device=mask.device)
    distance = (places[-queries:, None] - places).abs()
    return mask_as_taken(mask, distance, config, dtype)


def mask_as_taken(
    mask: Tensor,
    distance: Tensor,
    config: Any,  # noqa: ANN401
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """A mask of pairs of tokens in the format of the backbone.

    Encoders use a given mask as it is. If some layers see only a window of neighbours
    (ModernBERT), their mask has the window, and the encoder gets one mask for each type of layer.
    Eager attention adds its mask to the scores, so it gets numbers (DeBERTa takes only bool).

    Args:
        mask: (B, 1, Q, T) bool, True where row may attend to column.
        distance: (B, 1, Q, T), or broadcastable to it: distance between the two tokens.
        config: The backbone's configuration.
        dtype: Data type of the input vectors.

    Returns:
        (B, 1, Q, T), or such a mask for each layer type.
    """
    masks = {"full_attention": mask}
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        masks["sliding_attention"] = mask & (distance <= config.sliding_window)
    adds = config._attn_implementation == "eager" and config.model_type != "deberta-v2"
    if adds:
        lowest = torch.finfo(dtype).min
        masks = {
            name: torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, lowest)
            for name, seen in masks.items()
        }
    return masks if len(masks) > 1 else masks["full_attention"]


_DROPOUTS = (
    "hidden_dropout_prob",
    "resid_pdrop",
    "embd_pdrop",
    "embedding_dropout",
    "mlp_dropout",
)
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout")
"""Always 0: dropout of attention weights rules out fused attention on a CPU (1/3 slower)."""
MODEL_ASSETS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Packaged backbones and their names on the hub."""
UNBOUNDED = 1 << 31
"""Context of a backbone without a limit, in tokens."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model without a task head, and its tokenizer.

    Attributes:
        source: Name of a packaged asset, a folder or a hub id.
        model: The model.
        tokenizer: Its tokenizer; None for a recurrent backbone of style ``token``.
        kind: ``encoder`` (BERT-like, attends in both directions unless masked), ``decoder``
            (GPT-like, causal) or ``recurrent`` (`llm_influence.modeling.recurrent`).
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    kind: Literal["encoder", "decoder", "recurrent"]

    @property
    def hub_name(self) -> str | None:
        """Public name on the hub; None for a local folder and a recurrent backbone."""
        return None if self.kind == "recurrent" else public_name(self.source)

    @property
    def width(self) -> int:
        """Size H of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def context(self) -> int:
        """Maximum number of tokens; a recurrent backbone has no limit."""
        if self.kind == "recurrent":
            return UNBOUNDED
        most = getattr(self.model.config, "max_position_embeddings", 2048)
        return int(most) - self.first_position

    @property
    def words(self) -> nn.Embedding | None:
        """Input embeddings of the tokenizer's tokens; None if the backbone has none."""
        embedding: nn.Embedding | None = self.model.get_input_embeddings()
        return embedding

    @property
    def input_width(self) -> int:
        """Size of an input vector."""
        return self.width if self.words is None else int(self.words.weight.shape[1])

    @property
    def usual_length(self) -> float:
        """Mean length of the input embeddings; 1 without them."""
        return 1.0 if self.words is None else self.words.weight.norm(dim=-1).mean().item()

    @property
    def attends(self) -> bool:
        """Whether the backbone has attention weights, keys and values."""
        return self.kind != "recurrent"

    @property
    def has_absolute_positions(self) -> bool:
        """Whether the backbone adds an embedding of the position to every token."""
        names = (
            name.rpartition(".")[2]
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding)
        )
        return any(name in ("position_embeddings", "embed_positions", "wpe") for name in names)

    def new_cache(self) -> Any:  # noqa: ANN401
        """An empty cache of tokens that were read: keys and values, or a recurrent state."""
        if self.kind == "recurrent":
            return self.model.new_cache()
        # local layers of an encoder keep all tokens, as their mask has the window already
        return DynamicCache(config=self.model.config) if self.kind == "decoder" else DynamicCache()

    @property
    def loses_length(self) -> bool:
        """Whether the first operation normalises input vectors, so that their length is lost.

        Then the gradient along the vector is zero, and a path from zero is a jump.
        """
        return self.model.config.model_type in {"modernbert", "modernbert-decoder"}

    @property
    def first_position(self) -> int:
        """Position of the first token: 0, or for the RoBERTa family the one after padding."""
        embeddings = getattr(self.model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else int(padding) + 1


def public_name(source: str) -> str | None:
    """Name on the hub of a packaged asset or hub id; None for a local folder."""
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists()
    return MODEL_ASSETS.get(source, source if is_name else None)


def load_backbone(
    source: str,
    *,
    layers: int | None = None,
    dropout: float | None = None,
    complete: bool = False,
) -> Backbone:
    """Load a backbone in float32.

    Args:
        source: ``minilm`` or ``smollm2-135m`` (packaged assets), a local folder, or a hub id.
        layers: Number of first layers to keep; default: all.
        dropout: Dropout of hidden states, with none of attention weights; default: unchanged.
        complete: Refuse a source that lacks weights. Checkpoints of the hub may lack a pooler,
            which is not used; a model folder is always complete.

    Raises:
        ModelError: The source cannot be loaded, or is an encoder-decoder.
        AssetError: A packaged asset cannot be fetched.
    """
    place: dict[str, Any] = {"pretrained_model_name_or_path": source, "trust_remote_code": False}
    if source in MODEL_ASSETS:
        path = asset_path(source)
        is_gguf = path.suffix == ".gguf"
        place["pretrained_model_name_or_path"] = str(path.parent if is_gguf else path)
        if is_gguf:
            place["gguf_file"] = path.name
    try:
        config = AutoConfig.from_pretrained(**place)
        _adjust(config, layers, dropout)
        model, report = AutoModel.from_pretrained(
            **place, config=config, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except ModelError:  # too many layers
        raise
    except (*FAILURES, OSError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"the backbone {source!r} cannot be loaded ({error})",
            where="model.backbone",
            expected=f"{choices(MODEL_ASSETS, source)}, a local folder, or a hub id",
            fix="check the name and the network; assets come from the package registry alone",
        ) from error
    if complete:
        refuse_missing(report, source)
    if config.is_encoder_decoder:
        raise ModelError(
            f"{source!r} is an encoder-decoder ({config.model_type})",
            where="model.backbone",
            expected="an encoder (BERT-like) or a decoder (GPT-like)",
            fix="choose another backbone",
        )
    model.name_or_path = public_name(source) or ""  # never a path of this machine
    if config.model_type == "deberta-v2":
        _attend_in_pairs(model)
    if "gguf_file" in place:
        _forget_quantisation(model)
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return Backbone(source, model.eval(), tokenizer, "encoder" if is_encoder else "decoder")


def refuse_missing(report: Mapping[str, Any], source: str) -> None:
    """Refuse a model of ``source`` if the loader reports missing weights.

    Raises:
        ModelError: A weight is missing.
    """
    if report["missing_keys"]:
        raise ModelError(
            f"lacks {', '.join(sorted(report['missing_keys'])[:5])}",
            where=source,
            expected="every weight of the backbone",
            fix="save the model again",
        )


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the GGUF settings of loaded float32 weights, which would prevent saving them."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _attend_in_pairs(model: PreTrainedModel) -> None:
    """Hide the mask from DeBERTa's embeddings, which accept only a padding mask.

    The layers accept a mask of pairs of tokens, which hides padding too.
    """
    model.embeddings.register_forward_pre_hook(
        lambda _, args, named: (args, named | {"mask": None}), with_kwargs=True
    )


def _adjust(config: Any, layers: int | None, dropout: float | None) -> None:  # noqa: ANN401
    if layers is not None:
        if layers > config.num_hidden_layers:
            raise ModelError(
                f"the backbone has {config.num_hidden_layers} layers",
                where=f"model.layers = {layers}",
                expected=f"at most {config.num_hidden_layers}",
                fix="lower model.layers",
            )
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):  # one name per layer
            config.layer_types = config.layer_types[:layers]
    if dropout is not None:
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
        for name in _ATTENTION_DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)


FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of a backbone that does not accept a mask of pairs of tokens."""
CLOSE = 1e-4
"""Tolerance of states, whose size is about 1."""


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the previous mode is restored at the end."""
    was_training = model.training
    if any(module.training for module in model.modules()):  # switching costs milliseconds
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()
