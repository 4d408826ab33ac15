"""A model ready to be fine-tuned: backbone, adapter, encoder and unit vectors put together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llm_influence.config.model import RECURRENT, ModelConfig
from llm_influence.config.run import RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.sources import open_knowledge
from llm_influence.errors import ConfigError
from llm_influence.modeling.adapters import attach_adapter
from llm_influence.modeling.backbone import Backbone, check_past_alone, load_backbone
from llm_influence.modeling.embeddings import Embeddings, item_bags
from llm_influence.modeling.heads import FeedbackScale
from llm_influence.modeling.recurrent import start_recurrent
from llm_influence.modeling.text_vectors import text_vectors
from llm_influence.rendering.batch import collate
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.rendering.token_cache import IdTokenCache
from llm_influence.rendering.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llm_influence.modeling.model import InfluenceModel


SUMMED = 512
"""Users whose histories say how large sums are."""


def build_model(
    kind: type[InfluenceModel], config: RunConfig, log: BehaviorLog, *, cache: Path | None
) -> InfluenceModel:
    """`InfluenceModel.build`: arguments and errors are those of the method of ``kind``."""
    torch.manual_seed(config.train.seed)
    wanted = config.model
    backbone, reader = _open_backbone(config)
    encoder = _encoder(config, log, backbone)
    _check_counted(wanted, encoder)
    words = _unit_words(encoder)
    texts = text_vectors(reader, words, cache=cache) if reader else torch.zeros(len(words), 0)
    rank = wanted.item_head.residual_width(len(encoder.vocabulary.catalogue), backbone.width)
    units = Embeddings(texts, backbone.width, scale=backbone.usual_length, rank=rank)
    adapter = attach_adapter(backbone.model, wanted.adapter)
    feedback = None
    if wanted.feedback is not None:
        feedback = FeedbackScale.fit(log, wanted.feedback)
    model = kind(backbone, adapter, encoder, units, wanted, feedback)
    if not units.has_words:
        units.begin_at_random()
    model.facts = open_knowledge(config.data)
    if model.facts is not None and wanted.item_head.neighbors.share:
        bags = item_bags(
            model.facts,
            model.catalogue.ids,
            count=wanted.item_head.neighbors.count,
            share=wanted.item_head.neighbors.share,
            first=model.first_item,
            first_item=model.first_item,
        )
        units.mix(*bags)
    model.rules = config.rules
    if model.totals is not None:
        users = np.linspace(0, len(log) - 1, min(len(log), SUMMED)).astype(int)
        histories = [log.at(user) for user in users.tolist()]
        model.totals.fit(collate(encoder.encode(histories)))
    check_past_alone(model)
    return model


def _open_backbone(config: RunConfig) -> tuple[Backbone, Backbone | None]:
    """The backbone, and the one that reads the texts of items: the same, another or none."""
    wanted = config.model
    if wanted.backbone in RECURRENT:
        return start_recurrent(wanted, config.rendering.style)
    backbone = load_backbone(wanted.backbone, layers=wanted.layers, dropout=wanted.dropout)
    return backbone, backbone


def _encoder(config: RunConfig, log: BehaviorLog, backbone: Backbone) -> Encoder:
    template = Template.load(config.rendering.template)
    room = config.rendering.max_tokens or backbone.context
    return Encoder(
        template,
        Vocabulary.fit(log, template.user_features),
        style=config.rendering.style,
        tokenizer=backbone.tokenizer,
        max_events=config.rendering.max_events,
        max_tokens=min(room, backbone.context),
    )


def _check_counted(config: ModelConfig, encoder: Encoder) -> None:
    """Refuse to count items that no token names, or where training does not score all items."""
    head, items = config.item_head, len(encoder.vocabulary.catalogue)
    if head.repeats and head.loss_for(items) != "full":
        raise ConfigError(
            f"{items:,} items with loss {head.loss_for(items)!r}",
            where="model.item_head.repeats",
            expected="loss full: what was seen is added to the chances of all items",
            fix="set model.item_head.loss to full, or leave repeats off",
        )
    if head.repeats and "item" not in encoder.template.fields:
        raise ConfigError(
            f"template {encoder.template.name!r} says no item",
            where="model.item_head.repeats",
            expected="{item} in the event line, so that items can be counted",
            fix="add {item} to the template, or leave repeats off",
        )


def _unit_words(encoder: Encoder) -> list[str]:
    pieces = encoder.token_cache
    if isinstance(pieces, IdTokenCache):
        return pieces.words
    return list(encoder.vocabulary.catalogue.texts)
