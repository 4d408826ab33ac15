"""Building a model: backbone, adapter, encoder, embeddings and heads from a configuration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from llm_influence.config.model import RECURRENT, ModelConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.public import open_knowledge
from llm_influence.errors import ConfigError, ModelError
from llm_influence.modeling.adapters import attach_adapter
from llm_influence.modeling.backbone import (
    CLOSE,
    FAILURES,
    Backbone,
    inference,
    load_backbone,
)
from llm_influence.modeling.embeddings import Embeddings, item_bags, text_vectors
from llm_influence.modeling.heads import FeedbackScale, make_heads
from llm_influence.modeling.network import Network, Parts
from llm_influence.modeling.recurrent import start_recurrent
from llm_influence.rendering.encoder import EncodedBatch, Encoder, collate
from llm_influence.rendering.template import Template
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.rendering.vocabulary import Vocabulary

FITTED_USERS = 512
"""Number of users whose histories standardise the aggregate features."""


def build_parts(config: RunConfig, log: BehaviorLog, *, cache: Path | None = None) -> Parts:
    """The parts of an untrained model; arguments and errors as in `InfluenceModel.build`."""
    torch.manual_seed(config.train.seed)
    options = config.model
    backbone, reader = _open_backbone(config)
    encoder = _encoder(config, log, backbone)
    _check_repeat_counts(options, encoder)
    tokens = encoder.token_cache
    first_item = tokens.first_item if isinstance(tokens, IdTokenCache) else 0
    catalogue = encoder.vocabulary.catalogue
    words = tokens.words if isinstance(tokens, IdTokenCache) else list(catalogue.texts)
    embeddings = Embeddings(
        text_vectors(reader, words, cache=cache) if reader else torch.zeros(len(words), 0),
        backbone.width,
        scale=backbone.usual_length,
        rank=options.item_head.residual_width(len(catalogue), backbone.width),
        first_item=first_item,
        residual_dropout=options.residual_dropout,
    )
    adapter = attach_adapter(backbone.model, options.adapter)
    if encoder.style == "token" and backbone.words is not None:  # the embeddings replace them
        backbone.words.requires_grad_(requires_grad=False)
    scale = None if options.feedback is None else FeedbackScale.fit(log, options.feedback)
    heads = make_heads(backbone, encoder, options, scale)
    if not embeddings.has_words:
        embeddings.begin_at_random()
    facts = open_knowledge(config.data)
    neighbors = options.item_head.neighbors
    if facts is not None and neighbors.share:
        count, share = neighbors.count, neighbors.share
        place = {"first": first_item, "first_item": first_item}
        embeddings.mix(*item_bags(facts, catalogue.ids, count=count, share=share, **place))
    if heads.feedback is not None and heads.feedback.aggregates is not None:
        users = np.linspace(0, len(log) - 1, min(len(log), FITTED_USERS)).astype(int)
        histories = [log.at(user) for user in users.tolist()]
        heads.feedback.aggregates.fit(collate(encoder.encode(histories)))
    return Parts(backbone, adapter, encoder, embeddings, heads, options, facts, rules=config.rules)


def _open_backbone(config: RunConfig) -> tuple[Backbone, Backbone | None]:
    """The backbone, and the one that reads the texts of items: the same, another or none."""
    options = config.model
    if options.backbone in RECURRENT:
        return start_recurrent(options, config.rendering.style)
    backbone = load_backbone(options.backbone, layers=options.layers, dropout=options.dropout)
    return backbone, backbone


def _encoder(config: RunConfig, log: BehaviorLog, backbone: Backbone) -> Encoder:
    template = Template.load(config.rendering.template)
    most = config.rendering.max_tokens or backbone.context
    return Encoder(
        template,
        Vocabulary.fit(log, template.user_features),
        style=config.rendering.style,
        tokenizer=backbone.tokenizer,
        max_events=config.rendering.max_events,
        max_tokens=min(most, backbone.context),
    )


def _check_repeat_counts(config: ModelConfig, encoder: Encoder) -> None:
    """Refuse repeat counts of items that have no token, or with a loss on some items only."""
    head, items = config.item_head, len(encoder.vocabulary.catalogue)
    if head.repeat_counts and head.loss_for(items) != "full":
        raise ConfigError(
            f"{items:,} items with loss {head.loss_for(items)!r}",
            where="model.item_head.repeat_counts",
            expected="loss full: repeat counts are added to the probabilities of all items",
            fix="set model.item_head.loss to full, or leave repeat_counts off",
        )
    if head.repeat_counts and "item" not in encoder.template.fields:
        raise ConfigError(
            f"template {encoder.template.name!r} has no item",
            where="model.item_head.repeat_counts",
            expected="{item} in the event line, so that items can be counted",
            fix="add {item} to the template, or leave repeat_counts off",
        )


def check_causality(network: Network, *, events: int = 4, tokens: int = 3) -> None:
    """Refuse a backbone whose state after an event depends on later events.

    Some architectures mix tokens by convolution or Fourier transform whatever the mask is. A model
    trained on them would have seen the labels.

    Args:
        network: The network.
        events: Number of events of the history that is tried.
        tokens: Number of tokens of each event.

    Raises:
        ModelError: The backbone sees later events, or does not accept a mask of pairs of tokens.
    """
    backbone, total = network.backbone, events * tokens
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(1, total, backbone.input_width, generator=generator)
    other = vectors.clone()
    other[:, -tokens:] = -other[:, -tokens:]
    event = torch.arange(total).div(tokens, rounding_mode="floor")[None]
    batch = EncodedBatch(
        input_ids=torch.zeros_like(event),
        added_ids=torch.empty(1, total, 0, dtype=torch.long),
        attention_mask=torch.ones_like(event, dtype=torch.bool),
        event_index=event,
        field_index=torch.full_like(event, -1),
        ends=torch.arange(-1, total, tokens)[None].clamp(min=0),
        num_events=torch.tensor([events]),
        when=torch.zeros(1, dtype=torch.long),
    )
    try:
        with inference(network):
            first, second = (network.states(batch, v.to(network.device)) for v in (vectors, other))
    except FAILURES as error:
        raise _refused(backbone, f"cannot be run with a mask ({error})") from error
    change = (first - second).abs()[:, :-tokens].max().item()
    if change > CLOSE * max(1.0, first.abs().mean().item()):
        raise _refused(backbone, "lets an event's state depend on later events")


def _refused(backbone: Backbone, reason: str) -> ModelError:
    return ModelError(
        f"{backbone.source!r} ({backbone.model.config.model_type}) {reason}",
        where="model.backbone",
        expected="a decoder, or an encoder that takes a mask of shape (B, 1, T, T)",
        fix="choose another backbone; docs/how-to/choose_a_backbone.md lists families that work",
    )
