"""The parts of a model: what a model folder holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm_influence.config.model import ModelConfig
from llm_influence.config.rules import Rule
from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.modeling.adapters import Adapter
from llm_influence.modeling.backbone import Backbone
from llm_influence.modeling.embeddings import Embeddings
from llm_influence.modeling.heads import Heads
from llm_influence.rendering.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that a model folder holds.

    Attributes:
        backbone: The backbone.
        adapter: The adapter on the backbone.
        encoder: Encoder of histories, with vocabulary and catalogue.
        embeddings: Vectors of the tokens of style ``token``, items included.
        heads: The heads.
        config: Options of the model.
        facts: Facts of a knowledge graph on items; None without a graph.
        protocol: Data, split and protocol of the test metrics.
        rules: Rules of the recommendations.
    """

    backbone: Backbone
    adapter: Adapter
    encoder: Encoder
    embeddings: Embeddings
    heads: Heads
    config: ModelConfig
    facts: ItemFacts | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
