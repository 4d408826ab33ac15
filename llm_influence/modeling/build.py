"""A model ready to be fine-tuned: backbone, adapter, encoder and unit vectors put together."""

from __future__ import annotations

from pathlib import Path

import torch

from llm_influence.config import RECURRENT, RunConfig
from llm_influence.data.log import BehaviorLog
from llm_influence.data.sources import open_knowledge
from llm_influence.modeling.adapters import attach_adapter
from llm_influence.modeling.backbone import Backbone, load_backbone
from llm_influence.modeling.feedback import FeedbackScale
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.neighbors import item_bags
from llm_influence.modeling.probe import check_past_alone
from llm_influence.modeling.recurrent import start_recurrent
from llm_influence.modeling.text_vectors import text_vectors
from llm_influence.modeling.units import UnitVectors
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.lexicon import Lexicon
from llm_influence.rendering.pieces import UnitPieces
from llm_influence.rendering.template import Template


def build_model(config: RunConfig, log: BehaviorLog, *, cache: Path | None) -> InfluenceModel:
    """`InfluenceModel.build`: arguments and errors are those of the method."""
    torch.manual_seed(config.train.seed)
    wanted = config.model
    backbone, reader = _open_backbone(config)
    encoder = _encoder(config, log, backbone)
    words = _unit_words(encoder)
    texts = text_vectors(reader, words, cache=cache) if reader else torch.zeros(len(words), 0)
    rank = wanted.item_head.residual_width(len(encoder.lexicon.catalogue), backbone.width)
    units = UnitVectors(texts, backbone.width, scale=backbone.usual_length, rank=rank)
    adapter = attach_adapter(backbone.model, wanted.adapter)
    feedback = None
    if wanted.feedback is not None:
        feedback = FeedbackScale.fit(log, wanted.feedback)
    model = InfluenceModel(backbone, adapter, encoder, units, wanted, feedback)
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
        Lexicon.fit(log, template.user_features),
        style=config.rendering.style,
        tokenizer=backbone.tokenizer,
        max_events=config.rendering.max_events,
        max_tokens=min(room, backbone.context),
    )


def _unit_words(encoder: Encoder) -> list[str]:
    pieces = encoder.pieces
    if isinstance(pieces, UnitPieces):
        return pieces.words
    return list(encoder.lexicon.catalogue.texts)
