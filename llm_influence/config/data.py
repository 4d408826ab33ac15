"""Sections on the behaviour log, its split and rendering; configurations of generated logs."""

from __future__ import annotations

import datetime
from datetime import date
from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_influence.config.document import Document, Section


class KnowledgeConfig(Section):
    """A knowledge graph: triples about entities, and the entity of each item."""

    source: str | None = Field(
        None, description="A .kg file of triples, or a public data set with a graph. null: none."
    )
    links: str | None = Field(
        None, description="File of items and entities. null: the .link file beside the source."
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
        3, ge=1, description="Most names of a relation, or titles of neighbours, in an item's text."
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
        None, ge=0, lt=1, description="As share, for items added after training. null: the same."
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
        1, ge=1, description="Events of a user in the test of leave_one_out, and in its validation."
    )
    examples: Literal["first", "all"] = Field(
        "first",
        description="Events of a user that are predicted after each moment of a global_time split: "
        "the first one, or all of them.",
    )
    behaviors: list[str] = Field(
        [], description="Behaviours of validation and test examples. []: all behaviours."
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
        None, description="Zone of times written without one, as Europe/Berlin. null: an error."
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


class DriftConfig(Section):
    """A date from which the data-generating process has other behaviour weights."""

    date: datetime.date = Field(
        description="First day of the change, UTC. Generated logs begin on 2025-06-15."
    )
    behaviors: dict[str, float] = Field(
        description="Weights from that day on, for the same behaviours as before."
    )


class PlantedConfig(Document):
    """A generated log whose data-generating process, and so the truth, is known."""

    users: int = Field(2000, ge=1, description="Number of generated users.")
    items: int = Field(40, ge=2, description="Number of items that belong to a cluster.")
    min_events: int = Field(
        8, ge=3, description="Smallest number of events of a user, the one to predict included."
    )
    max_events: int = Field(13, ge=3, description="Largest number of events of a user.")
    behaviors: dict[str, float] = Field(
        {"purchase": 1.0, "click": 0.5, "dismiss": -0.5},
        description="Weight of an event by behaviour: above 0 it speaks for similar items, below 0 "
        "against them.",
    )
    half_life: float = Field(
        6 * 3600.0, gt=0, description="Half-life of an event's weight, in seconds or steps (clock)."
    )
    clock: Literal["seconds", "steps"] = Field(
        "seconds", description="Unit of an event's age: seconds, or events since then."
    )
    clusters: int = Field(5, ge=2, le=12, description="Number of clusters of similar items.")
    rank: int | None = Field(
        None,
        ge=1,
        description="Rank of the item affinities; below the number of clusters, clusters support "
        "and oppose each other. null: the number of clusters.",
    )
    spread: float = Field(
        0.0, ge=0, description="Distance of items from the centre of their cluster."
    )
    distractor_share: float = Field(
        0.2, ge=0, lt=1, description="Share of the events that have a behaviour of weight 0."
    )
    distractor_items: int = Field(
        0, ge=0, description="Number of additional items without affinity to any item."
    )
    pair_strength: float = Field(
        0.0, description="Strength of interactions of two events. 0: effects of events add up."
    )
    temperature: float = Field(
        1.0, gt=0, description="Temperature of the softmax over items; higher means more noise."
    )
    session_share: float = Field(
        0.5, ge=0, lt=1, description="Share of the events that follow another within seconds."
    )
    gap_hours: float = Field(4.0, gt=0, description="Median number of hours between sessions.")
    gap_spread: float = Field(
        0.8, ge=0, description="Standard deviation of the logarithm of these hours."
    )
    exposure_spread: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of the logarithm of the items' exposures, independent of "
        "affinity. A user takes an item in proportion to affinity times exposure. 0: equal.",
    )
    drift: DriftConfig | None = Field(
        None, description="A change of the behaviour weights. null: no change."
    )
    target: Literal["contrast", "item"] = Field(
        "contrast",
        description="What the true influence explains: the log-odds of the best item over the best "
        "item of another cluster, or of the best item alone.",
    )
    cause_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="An event is a cause from this share of the largest influence.",
    )
    group_share: float = Field(
        0.0, ge=0, lt=1, description="Share of users in group b of feature group. 0: no group."
    )
    group_shift: float = Field(
        0.0,
        description="Added to group b's scores of the first cluster's items: an unfair process.",
    )
    group_taste: float = Field(
        0.0, description="The same in the history alone: groups differ, the process is fair."
    )
    seed: int = Field(0, ge=0, description="Seed of the process and of the users.")
    user_seed: int = Field(0, ge=0, description="Seed of other users of the same process.")

    @model_validator(mode="after")
    def _fits_together(self) -> PlantedConfig:
        if self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} not below min_events")
        if self.items < self.clusters:
            raise ValueError(f"at least one item for each of {self.clusters} clusters")
        if not any(self.behaviors.values()):
            raise ValueError("at least one behaviour whose weight is not zero")
        if (self.group_shift or self.group_taste) and not self.group_share:
            raise ValueError("group_share above 0: without it no user is of group b")
        if "impression" in self.behaviors:
            raise ValueError("another name than 'impression', which is the distractors'")
        if self.drift is not None and set(self.drift.behaviors) != set(self.behaviors):
            raise ValueError(f"drift.behaviors of the names {sorted(self.behaviors)}")
        return self


class PlantedFraudConfig(Document):
    """A generated log of bank accounts, some of them taken over.

    An alarm is a large transfer to a new payee. It is fraud if a login from a new device, ``tests``
    small online payments and a password change all lie within ``window_hours`` before it. A near
    miss lacks one of these events and is no fraud.
    """

    accounts: int = Field(1600, ge=10, description="Number of generated accounts.")
    days: int = Field(60, ge=10, description="Number of days of an account's history.")
    events_a_week: float = Field(
        1.2, gt=0, description="Average number of events of an account in a week, without alarms."
    )
    innocent_share: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of these events that look suspicious and are innocent: new devices, "
        "small payments, password changes.",
    )
    alarms: int = Field(3, ge=1, description="Largest number of alarms of an account, at least 1.")
    fraud_share: float = Field(0.4, gt=0, lt=1, description="Share of the alarms that are fraud.")
    near_miss_share: float = Field(
        0.8, ge=0, le=1, description="Share of the other alarms that are near misses."
    )
    window_hours: float = Field(
        48.0, gt=1, description="Number of hours before an alarm in which all signs must lie."
    )
    tests: int = Field(2, ge=1, description="Number of small payments that a fraud needs.")
    busy: float = Field(
        4, ge=0, description="Average number of ordinary events in the window of an alarm."
    )
    seed: int = Field(0, ge=0, description="Seed of all random draws.")

    @model_validator(mode="after")
    def _has_room(self) -> PlantedFraudConfig:
        needed = self.alarms * (self.window_hours / 24 + 1)
        if self.days < needed:
            raise ValueError(
                f"at least {needed:g} days: {self.alarms} alarms with a window of "
                f"{self.window_hours:g} hours and a day each"
            )
        return self
