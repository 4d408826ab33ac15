"""Where the data lies, how it is split, how histories become tokens, and what is known of items.

What is known of items beside the log: a knowledge graph, and what is made of it.

Where the log lies, how it is cut, and how histories become tokens.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, field_validator, model_validator

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


class SplitConfig(Section):
    """How histories are cut into training, validation and test.

    ``leave_one_out``: a user's last event is tested, the one before it validates; with
    ``held_out`` n, the last n are tested and the n before them validate.
    ``global_time``: events before ``validation_from`` train, those before ``test_from`` validate,
    the rest is tested; both are ISO times with a zone, or quantiles of all event times in (0, 1).
    A user is asked for the ``first`` event after each moment, or for ``all`` of them. Of the
    examples of either kind, those for events with other ``behaviors`` than these are left out.
    """

    kind: Literal["leave_one_out", "global_time"] = "leave_one_out"
    validation_from: str | float = 0.8
    test_from: str | float = 0.9
    min_events: int = Field(3, ge=2, description="users with fewer events only train")
    held_out: int = Field(1, ge=1, description="events of a user tested, and as many validate")
    examples: Literal["first", "all"] = Field("first", description="asked after each moment")
    behaviors: list[str] = Field([], description="only their events are asked; default: all")

    @field_validator("validation_from", "test_from", mode="before")
    @classmethod
    def _time_as_text(cls, value: object) -> object:
        """YAML reads an unquoted ISO time as a time; here it is text, as if it were quoted."""
        return value.isoformat() if isinstance(value, date) else value

    @model_validator(mode="after")
    def _fits_the_kind(self) -> SplitConfig:
        if self.kind == "global_time" and self.held_out != 1:
            raise ValueError("no held_out: a global_time split reads examples instead")
        if self.kind == "leave_one_out" and self.examples != "first":
            raise ValueError("no examples: a leave_one_out split reads held_out instead")
        if self.kind == "leave_one_out" and self.min_events < 2 * self.held_out:
            raise ValueError(
                f"min_events of at least {2 * self.held_out}: {self.held_out} events are tested "
                "and as many validate"
            )
        return self


class DataConfig(Section):
    """Where the log lies and what its columns mean.

    ``source`` is a file (Parquet, CSV, JSONL, RecBole .inter) or the name of a public data set
    (`llm_influence.data.public`). ``columns`` maps the contract's names to the file's own.
    """

    source: str = "movielens_100k"
    items: str | None = None
    users: str | None = None
    columns: dict[str, str] = Field({})
    item_text: list[str] | None = Field(
        None, description="item columns that make the item's text, in order; default: all text"
    )
    item_title: str | None = Field(None, description="item column shown to people")
    default_behavior: str = "interact"
    timezone: str | None = Field(None, description="zone of times written without one")
    duplicates: Literal["error", "drop", "keep"] = "error"
    split: SplitConfig = SplitConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()


class RenderingConfig(Section):
    """How a history becomes tokens (see `llm_influence.rendering`)."""

    style: Literal["token", "text"] = "token"
    template: str = Field("fused", description="a shipped template's name, or a YAML file")
    max_events: int = Field(50, ge=1, description="the most recent events that are kept")
    max_tokens: int | None = Field(None, ge=8, description="default: the backbone's context")
