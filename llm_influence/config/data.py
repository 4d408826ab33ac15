"""Sections on the behaviour log, the knowledge graph, the split and the rendering."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_influence.config.document import Section


class KnowledgeConfig(Section):
    """A knowledge graph: triples about entities, and the entity of each item."""

    source: str | None = Field(
        None,
        description="A .kg file of triples, or the name of a public data set that has a knowledge "
        "graph. null: no graph.",
    )
    links: str | None = Field(
        None,
        description="File that maps items to entities. null: the file beside the source whose name "
        "ends in .link.",
    )
    names: str | None = Field(
        None, description="Table with the columns entity_id and name. null: entities have no names."
    )
    relations: list[str] = Field([], description="Relations that are used. []: all of them.")
    text: Literal["none", "names", "neighbors"] = Field(
        "none",
        description="What the graph adds to the text of an item: nothing, the names of its "
        "entities, or the titles of the items that share its rarest entities (neighbors).",
    )
    named: int = Field(
        3,
        ge=1,
        description="Largest number of names of one relation, or of titles of neighbours, in the "
        "text of an item.",
    )

    @model_validator(mode="after")
    def _has_a_graph(self) -> KnowledgeConfig:
        if self.source is None and self != KnowledgeConfig.model_construct():
            raise ValueError("source, the graph that the other options belong to")
        return self


class NeighborsConfig(Section):
    """Item vectors mixed with the vectors of items that share entities of the knowledge graph.

    ``vector(i) = (1 - share) own(i) + share sum_j w_ij own(j)`` over the ``count`` items j with the
    largest cosine of entities. Entities are weighted by their rarity (idf); the weights w_ij are
    the cosines, scaled to sum to 1. Needs ``data.knowledge``.
    """

    share: float = Field(
        0.0, ge=0, lt=1, description="Share of the neighbours in an item's vector. 0: off."
    )
    new_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="The same share for items that are added after training. null: as share.",
    )
    count: int = Field(10, ge=1, description="Number of neighbours of an item.")

    @property
    def share_of_new(self) -> float:
        """Share of the neighbours in the vector of an item added after training."""
        return self.share if self.new_share is None else self.new_share


class SplitConfig(Section):
    """How histories are divided into training, validation and test."""

    kind: Literal["leave_one_out", "global_time"] = Field(
        "leave_one_out",
        description="leave_one_out: the last events of each user are the test, the events before "
        "them the validation. global_time: two moments divide the events of all users into "
        "training, validation and test.",
    )
    validation_from: str | float = Field(
        0.8,
        description="Begin of validation in a global_time split: an ISO time with a zone, or a "
        "quantile of all event times between 0 and 1.",
    )
    test_from: str | float = Field(
        0.9, description="Begin of test in a global_time split, written as validation_from."
    )
    min_events: int = Field(
        3, ge=2, description="Users with fewer events are used for training alone."
    )
    held_out: int = Field(
        1,
        ge=1,
        description="Events of a user in the test of a leave_one_out split, and as many in its "
        "validation.",
    )
    examples: Literal["first", "all"] = Field(
        "first",
        description="Events of a user that are predicted after each moment of a global_time split: "
        "the first one, or all of them.",
    )
    behaviors: list[str] = Field(
        [],
        description="Behaviours whose events are validation and test examples. []: all behaviours.",
    )

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
                f"min_events of at least {2 * self.held_out}: {self.held_out} events are in the "
                "test and as many in the validation"
            )
        return self


class DataConfig(Section):
    """The behaviour log, its item and user tables, and the meaning of their columns."""

    source: str = Field(
        "movielens_100k",
        description="The behaviour log: a file (Parquet, CSV, JSONL or RecBole .inter), or the "
        "name of a public data set.",
    )
    items: str | None = Field(
        None,
        description="Item table with the column item_id. null: items have no text but their id; a "
        "public data set brings its own table.",
    )
    users: str | None = Field(
        None,
        description="User table with the column user_id. null: users have no features; a public "
        "data set brings its own table.",
    )
    columns: dict[str, str] = Field(
        {},
        description="The file's own column names by standard name, as in {user_id: customer}. {}: "
        "columns have the standard names.",
    )
    item_text: list[str] | None = Field(
        None,
        description="Columns of the item table that form the text of an item, in this order after "
        "the title. null: all text columns.",
    )
    item_title: str | None = Field(
        None,
        description="Column of the item table that is shown to people. null: the first text column "
        "whose name contains title or name.",
    )
    default_behavior: str = Field(
        "interact", description="Behaviour of all events of a log without the column behavior."
    )
    timezone: str | None = Field(
        None,
        description="Time zone of times written without one, as in Europe/Berlin. null: such times "
        "are an error.",
    )
    duplicates: Literal["error", "drop", "keep"] = Field(
        "error",
        description="What to do with an event that stands twice (same user, item, behaviour and "
        "time): refuse the log, drop the copies, or keep them.",
    )
    split: SplitConfig = SplitConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()


class RenderingConfig(Section):
    """How a history becomes the tokens that the model reads."""

    style: Literal["token", "text"] = Field(
        "token",
        description="token: one learned embedding for each field of an event. text: the words of "
        "the template, cut into tokens by the backbone's tokenizer.",
    )
    template: str = Field(
        "fused", description="Name of a shipped template, or a YAML file with your own."
    )
    max_events: int = Field(
        50, ge=1, description="Number of most recent events of a history that the model reads."
    )
    max_tokens: int | None = Field(
        None,
        ge=8,
        description="Largest number of tokens of a history; the oldest events are left out. null: "
        "the context of the backbone.",
    )
