"""Where a process computes.

Who may attend to whom.

A pretrained transformer, from a packaged asset, a local folder or the model hub.

Does a backbone do as it is told? Asked once, before anything is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from llm_influence.datasets.assets import asset_path
from llm_influence.errors import ModelError, choices
from llm_influence.rendering.batch import EncodedBatch

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


def on_cpu() -> bool:
    """Whether there is no accelerator: processes on CPUs join forces only if told so."""
    return not torch.accelerator.is_available()


def event_causal_mask(batch: EncodedBatch) -> Tensor:
    """Let every token see visible tokens of its own and of earlier events, prompt included.

    With it an encoder's state at an event's last token is the same whether later events exist or
    not, so one pass predicts after every event. Every token also sees itself, so that no row of
    the softmax is empty at padding.

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
    """The event-causal mask in the form that an encoder takes it.

    An encoder uses a ready mask as it is, so everything that it would have done itself is done
    here. Where some layers see a window of neighbours alone (ModernBERT), the window is cut into
    their mask, and the encoder gets one mask for each type of layer. Eager attention adds its
    mask to the scores, so it gets numbers instead of bool (DeBERTa reads bool alone).

    Args:
        batch: What is read, T tokens.
        config: The backbone's configuration.
        dtype: Of the vectors that are read.
        queries: Number Q of tokens, the last ones, that states are wanted of.

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
    """A mask of pairs of tokens in the form that the backbone takes it.

    Args:
        mask: (B, 1, Q, T) bool, True where row may attend to column.
        distance: (B, 1, Q, T), or what broadcasts to it: places between the two tokens.
        config: The backbone's configuration.
        dtype: Of the vectors that are read.

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
"""Dropped attention weights bar the fused attention of a CPU and cost a third of a step."""
MODEL_ASSETS = ("minilm", "smollm2-135m")
UNBOUNDED = 1 << 31
"""Tokens of a context that has no bound."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model without a task head, its tokenizer, and which way it reads.

    ``encoder``: BERT-like, attends both ways unless masked. ``decoder``: GPT-like, causal.
    ``recurrent``: carries a state (`llm_influence.modeling.recurrent`); it has a tokenizer only
    where it reads text.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    kind: Literal["encoder", "decoder", "recurrent"]

    @property
    def width(self) -> int:
        """Size H of a hidden state."""
        return int(self.model.config.hidden_size)

    @property
    def context(self) -> int:
        """Most tokens the backbone has positions for; a recurrent one has no positions."""
        if self.kind == "recurrent":
            return UNBOUNDED
        most = getattr(self.model.config, "max_position_embeddings", 2048)
        return int(most) - self.first_position

    @property
    def words(self) -> nn.Embedding | None:
        """Input vectors of the tokenizer's words, if the backbone has its own."""
        found: nn.Embedding | None = self.model.get_input_embeddings()
        return found

    @property
    def input_width(self) -> int:
        """Size of an input vector."""
        return self.width if self.words is None else int(self.words.weight.shape[1])

    @property
    def usual_length(self) -> float:
        """Mean length of the words' input vectors; 1 where there are none."""
        return 1.0 if self.words is None else self.words.weight.norm(dim=-1).mean().item()

    @property
    def attends(self) -> bool:
        """Whether there are attention weights, keys and values."""
        return self.kind != "recurrent"

    def new_cache(self) -> Any:  # noqa: ANN401
        """Room for what the backbone keeps of tokens that were read, given to its `model`."""
        if self.kind == "recurrent":
            from llm_influence.modeling.recurrent import RecurrentCache

            return RecurrentCache()
        # an encoder's local layers are masked by us and keep all
        return DynamicCache(config=self.model.config) if self.kind == "decoder" else DynamicCache()

    @property
    def loses_length(self) -> bool:
        """Whether an input vector is normalised before anything else, so its length says nothing.

        Then the gradient along the vector is zero, and a path from zero is a jump.
        """
        return self.model.config.model_type in {"modernbert", "modernbert-decoder"}

    @property
    def first_position(self) -> int:
        """Number of the first token's position: 0, but in RoBERTa's family after the padding's."""
        embeddings = getattr(self.model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else int(padding) + 1


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
        layers: Keep only the first layers.
        dropout: Overrides the dropout of hidden states, and turns that of attention weights off.
        complete: Refuse a source that lacks weights, as one of our own folders never does; other
            checkpoints may lack parts that no state of ours passes through.

    Raises:
        ModelError: The source cannot be loaded, or is an encoder-decoder.
        AssetError: A packaged asset cannot be fetched.
    """
    place: dict[str, Any] = {"pretrained_model_name_or_path": source}
    if source in MODEL_ASSETS:
        path = asset_path(source)
        is_gguf = path.suffix == ".gguf"
        place = {"pretrained_model_name_or_path": str(path.parent if is_gguf else path)}
        if is_gguf:
            place["gguf_file"] = path.name
    try:
        config = AutoConfig.from_pretrained(**place)
        _adjust(config, layers, dropout)
        model, report = AutoModel.from_pretrained(
            **place, config=config, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
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
    if config.model_type == "deberta-v2":
        _attend_in_pairs(model)
    if "gguf_file" in place:
        _forget_quantisation(model)
    kind: Literal["encoder", "decoder"] = (
        "encoder" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "decoder"
    )
    return Backbone(source, model.eval(), tokenizer, kind)


def refuse_missing(report: Mapping[str, Any], source: str) -> None:
    """Refuse what was loaded from ``source`` if the loader's ``report`` says that weights lack.

    Raises:
        ModelError: A weight is missing.
    """
    if report["missing_keys"]:
        raise ModelError(
            f"lacks {', '.join(sorted(report['missing_keys'])[:5])}",
            where=source,
            expected="every weight of the backbone",
            fix="save the model again, whole",
        )


def _forget_quantisation(model: PreTrainedModel) -> None:
    """GGUF weights are plain float32 once loaded; with the mark of their origin gone they save."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _attend_in_pairs(model: PreTrainedModel) -> None:
    """Keep the mask from DeBERTa's embeddings, which read it as one of padding alone.

    Its layers take a mask of pairs of tokens; there padding is hidden all the same.
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
        if getattr(config, "layer_types", None):  # one name a layer, where layers differ
            config.layer_types = config.layer_types[:layers]
    if dropout is not None:
        for name in _DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
        for name in _ATTENTION_DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, 0.0)


EVENTS, TOKENS = 4, 3
FAILURES = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
CLOSE = 1e-4  # of states whose size is about one; a leak moves them far more


def check_past_alone(model: InfluenceModel) -> None:
    """Refuse a backbone whose state after an event changes with the events that follow.

    Every architecture of a hub cannot be tried in advance: some mix tokens by convolution or
    Fourier transform, whatever the mask says, and a model trained on them would have seen the
    answers.

    Raises:
        ModelError: It sees the future, or cannot be run with a mask of pairs of tokens at all.
    """
    backbone, total = model.backbone, EVENTS * TOKENS
    width = backbone.input_width
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, total, width, generator=generator)
    other = vectors.clone()
    other[:, -TOKENS:] = -other[:, -TOKENS:]
    event = torch.arange(total).div(TOKENS, rounding_mode="floor")[None]
    batch = EncodedBatch(
        input_ids=torch.zeros_like(event),
        added_ids=torch.empty(1, total, 0, dtype=torch.long),
        attention_mask=torch.ones_like(event, dtype=torch.bool),
        event_index=event,
        field_index=torch.full_like(event, -1),
        ends=torch.arange(-1, total, TOKENS)[None].clamp(min=0),
        num_events=torch.tensor([EVENTS]),
        when=torch.zeros(1, dtype=torch.long),
    )
    try:
        with inference(model):
            first, second = (model.states(batch, v.to(model.device)) for v in (vectors, other))
    except FAILURES as error:
        raise _refused(model, f"cannot be run with a mask ({error})") from error
    moved = (first - second).abs()[:, :-TOKENS].max().item()
    if moved > CLOSE * max(1.0, first.abs().mean().item()):
        raise _refused(model, "lets an event's state depend on later events")


def _refused(model: InfluenceModel, found: str) -> ModelError:
    backbone = model.backbone
    return ModelError(
        f"{backbone.source!r} ({backbone.model.config.model_type}) {found}",
        where="model.backbone",
        expected="a decoder, or an encoder that takes a mask of shape (B, 1, T, T)",
        fix="choose another backbone; docs/backbones.md lists families that were tried",
    )


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; the mode the model was in comes back afterwards."""
    was_training = model.training
    if any(module.training for module in model.modules()):  # switching costs milliseconds
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()
