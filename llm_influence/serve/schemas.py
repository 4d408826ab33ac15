"""Requests and answers of the API, with their limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_EVENTS = 1000
MOST_ITEMS = 100
MOST_EDITS = 100
Name = Annotated[str, Field(min_length=1, max_length=500)]
Seconds = Annotated[int, Field(ge=-(2**53), le=2**53, description="Unix seconds, UTC")]
Amount = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EventIn(_Strict):
    """One event of a history."""

    item: Name
    behavior: Name | None = Field(None, description="Default: the model's only behaviour.")
    timestamp: Seconds
    value: Amount | None = None


class Edit(_Strict):
    """One change of a history. ``place`` counts the events of the question from 0."""

    action: Literal["remove", "change", "add"]
    place: int | None = Field(None, ge=0, lt=MOST_EVENTS)
    item: Name | None = None
    behavior: Name | None = None
    timestamp: Seconds | None = None
    value: Amount | None = None

    @model_validator(mode="after")
    def _complete(self) -> Edit:
        if self.action == "add":
            if self.item is None or self.timestamp is None or self.place is not None:
                raise ValueError("add takes item and timestamp, and no place")
        elif self.place is None or self.item is not None:
            raise ValueError(f"{self.action} takes place, and no item")
        return self


class Question(_Strict):
    """Whose next event is asked for: a user of the log, or the events themselves."""

    user: Name | None = Field(None, description="A user of the server's log.")
    events: list[EventIn] | None = Field(None, max_length=MOST_EVENTS)
    features: dict[str, str] = Field(default_factory=dict, description="User features by column.")
    query_time: Seconds | None = Field(None, description="Time of the next event, if it is known.")
    edits: list[Edit] = Field(
        default_factory=list, max_length=MOST_EDITS, description="Changes of the history."
    )
    now: Seconds | None = Field(None, description="Query time after the changes.")

    @model_validator(mode="after")
    def _one_history(self) -> Question:
        if (self.user is None) == (self.events is None):
            raise ValueError("give either user or events")
        return self


class RecommendIn(Question):
    """A question for the best items."""

    k: int = Field(10, ge=1, le=MOST_ITEMS)


class ExplainIn(Question):
    """A question for the influence of each event on one item."""

    item: Name | None = Field(None, description="Default: the first recommendation.")
    over: Name | None = Field(None, description="Another item: why not that one?")
    language: Literal["en", "zh"] = "en"


class FewestIn(Question):
    """A question for the fewest events that change, or alone keep, the first recommendation."""

    language: Literal["en", "zh"] = "en"


class WhatIfIn(RecommendIn):
    """A question with changes of its history."""

    explain: bool = Field(True, description="Explain the first item before and after.")
    language: Literal["en", "zh"] = "en"


class EventOut(BaseModel):
    """One event of a history, with its title."""

    item: str
    title: str
    behavior: str
    timestamp: int
    value: float | None


class Ranked(BaseModel):
    """One recommended item."""

    rank: int
    item: str
    title: str
    probability: float
    rules: list[str]


class RecommendOut(BaseModel):
    """The best items, best first."""

    items: list[Ranked]


class Scored(EventOut):
    """An event with its influence in log-odds."""

    score: float
    error: float | None = Field(description="Standard error; null for a method without one.")
    in_block: bool = Field(description="Scored together with others: only their sum is known.")


class ExplainOut(BaseModel):
    """The influence of each event on one item."""

    item: str
    title: str
    probability: float | None
    rank: int | None
    candidates: int | None
    method: str
    sentence: str
    events: list[Scored]
    together: float | None = Field(description="Score of the events that were scored together.")
    how_sure: list[str]


class Moved(BaseModel):
    """An item whose rank changed; null: not on the list."""

    item: str
    title: str
    before: int | None
    after: int | None


class WhatIfOut(BaseModel):
    """Both lists, what moved, and both explanations."""

    events: list[EventOut] = Field(description="The history after the changes.")
    before: list[Ranked]
    after: list[Ranked]
    moved: list[Moved]
    changed: bool
    says: str
    explanation_before: ExplainOut | None
    explanation_after: ExplainOut | None


class FewestOut(BaseModel):
    """The fewest events, by place in the history of the question."""

    item: str
    title: str
    places: list[int]
    events: list[EventOut]
    instead: str | None = Field(description="Title of the new first item, where one changed.")
    proven: bool = Field(description="Whether fewer events are proven not to do.")
    says: str


class UserOut(BaseModel):
    """A user of the log."""

    user: str
    events: int


class ItemOut(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str


class Problem(BaseModel):
    """An error in the four parts of every message of the library."""

    found: str
    where: str
    expected: str
    fix: str
