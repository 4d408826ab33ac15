"""What is known of items beside the log: a knowledge graph, and what is made of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_influence.config.document import Section


class KnowledgeConfig(Section):
    """A graph of triples about entities, and which items are which of them; docs/knowledge.md.

    ``text`` adds what it says to the items' texts: the ``names`` of their entities (where the graph
    has any), or the titles of the items that share the rarest entities (``neighbors``).
    """

    source: str | None = Field(
        None, description="a .kg file of triples, or a public data set that has one; default: none"
    )
    links: str | None = Field(
        None, description="item to entity; default: the file beside it ending in .link"
    )
    names: str | None = Field(None, description="table of entity_id and name, if there is one")
    relations: list[str] = Field([], description="facts by these alone; default: by all")
    text: Literal["none", "names", "neighbors"] = "none"
    named: int = Field(3, ge=1, description="most names of a relation, or titles of neighbours")

    @model_validator(mode="after")
    def _has_a_graph(self) -> KnowledgeConfig:
        if self.source is None and self != KnowledgeConfig.model_construct():
            raise ValueError("source, the graph that the other options are about")
        return self


class NeighborsConfig(Section):
    """Vectors of items mixed with those of the items that share their entities.

    ``vector(i) = (1 - share) own(i) + share sum_j w_ij own(j)`` over the ``count`` items with the
    largest cosine of entities, each entity weighted by its rarity (idf); the w_ij are these
    cosines, made to sum to 1. Needs ``data.knowledge``.
    """

    share: float = Field(0.0, ge=0, lt=1, description="of the neighbours in a vector; 0: off")
    new_share: float | None = Field(
        None, ge=0, lt=1, description="the same of items added after training; default: share"
    )
    count: int = Field(10, ge=1, description="neighbours of an item")

    @property
    def share_of_new(self) -> float:
        """Share of the neighbours in the vector of an item added after training."""
        return self.share if self.new_share is None else self.new_share
