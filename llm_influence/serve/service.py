"""What the API answers, without HTTP: recommendations, explanations, changed histories."""

# ruff: noqa: RUF001 - Chinese signs are meant: these texts are for people.

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.attribution.counterfactual import Counterfactual, counterfactual
from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.recommended import best_unseen
from llm_influence.attribution.sufficient import SufficientEvents, sufficient_events
from llm_influence.attribution.target import Contrast, bind_items
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import DataError, UnknownNameError, unknown
from llm_influence.influence.influence import Influence
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.scoring import Recommendation
from llm_influence.serve import schemas
from llm_influence.types import Event, History

FEWEST = {
    "en": {
        "change": "Without these {count} events “{other}” comes first instead of “{name}”.",
        "change.none": "No removal that was tried changes “{name}”.",
        "keep": "These {count} events alone keep “{name}” first.",
        "keep.none": "“{name}” comes first even without any event.",
        "proven": " Fewer do not: all were tried.",
        "open": " Fewer might do: not all were tried.",
    },
    "zh": {
        "change": "去掉这{count}个事件后，“{other}”会取代“{name}”排在第一。",
        "change.none": "试过的删除都不会改变“{name}”。",
        "keep": "仅凭这{count}个事件，“{name}”仍排第一。",
        "keep.none": "即使没有任何事件，“{name}”也排第一。",
        "proven": "更少则不行：已全部试过。",
        "open": "更少也许可以：没有全部试过。",
    },
}
NOTHING_MOVED = {
    "en": "Nothing moved: the list is the same, in the same order.",
    "zh": "没有变化：列表及其顺序都一样。",
}
NEW_FIRST = {"en": "Now “{name}” comes first.", "zh": "现在“{name}”排在第一。"}
SAME_FIRST = {
    "en": "“{name}” still comes first; {count} of the others moved.",
    "zh": "“{name}”仍排第一；另有{count}个物品的位置变了。",
}


@dataclass(frozen=True)
class Service:
    """Answers questions about one model.

    Attributes:
        model: The model, in eval mode.
        log: Users who can be asked for by name; None without any.
        method: Attribution method of the explanations.
    """

    model: InfluenceModel
    log: BehaviorLog | None = None
    method: str = "group_shapley"

    @cached_property
    def explainer(self) -> Explainer:
        """Explanations without a measurement of fidelity, which would cost as much again."""
        return Explainer(self.model, self.method, fidelity_masks=0)

    # --- histories -------------------------------------------------------------------------

    def history(self, question: schemas.Question) -> History:
        """The history of a question.

        Raises:
            UnknownNameError: The user, an item or a behaviour is unknown.
            DataError: There is no log, or an event lacks its behaviour.
        """
        if question.events is None:
            history = self._of_user(question.user or "")
        else:
            events = [
                self._event(e.item, e.behavior, e.timestamp, e.value) for e in question.events
            ]
            history = History.from_events("", events, question.features)
        if question.query_time is not None:
            history = replace(history, query_time=question.query_time)
        return history

    def _of_user(self, user: str) -> History:
        if self.log is None:
            raise DataError(
                f"user {user!r}, and the server has no log",
                where="user",
                expected="events",
                fix="send the events, or start the server with --log",
            )
        return self.log[user]

    def _event(self, item: str, behavior: str | None, timestamp: int, value: float | None) -> Event:
        names = self.model.encoder.vocabulary.behaviors
        if behavior is None and len(names) > 1:
            raise DataError(
                "an event without a behaviour",
                where=f"event of item {item!r}",
                expected=f"one of {', '.join(names)}",
                fix="name the behaviour of each event",
            )
        event = Event(item, names[0] if behavior is None else behavior, timestamp, value)
        if event.behavior not in names:
            raise unknown(UnknownNameError, "behaviour", event.behavior, names, where="events")
        self.model.catalogue.index([item])
        return event

    def asked(self, question: schemas.Question) -> History:
        """The history of a question after its changes; raises as `history` and `edited`."""
        return self.edited(self.history(question), question)

    def edited(self, history: History, question: schemas.Question) -> History:
        """The history after the changes of a question.

        Raises:
            UnknownNameError: An item or behaviour is unknown.
            DataError: A change names an event that is not there, or one that another change names.
        """
        if not question.edits and question.now is None:
            return history
        events: list[Event | None] = list(history.events())
        size, seen = len(events), set()
        for edit in question.edits:
            if edit.action == "add":
                item = edit.item or ""
                events.append(self._event(item, edit.behavior, edit.timestamp or 0, edit.value))
                continue
            place = -1 if edit.place is None else edit.place
            if not 0 <= place < size or place in seen:
                raise DataError(
                    f"place {place} of {size} events" + (" twice" if place in seen else ""),
                    where="edits",
                    expected="each place at most once, counted from 0",
                    fix="correct the place, or put both changes into one",
                )
            seen.add(place)
            old = events[place]
            if old is None or edit.action == "remove":
                events[place] = None
                continue
            events[place] = self._event(
                old.item,
                old.behavior if edit.behavior is None else edit.behavior,
                old.timestamp if edit.timestamp is None else edit.timestamp,
                old.value if edit.value is None else edit.value,
            )
        kept = [event for event in events if event is not None]
        changed = History.from_events(history.user_id, kept, history.user)
        now = history.query_time if question.now is None else question.now
        return replace(changed, query_time=now)

    # --- answers: each takes a list of arguments, see `jobs` --------------------------------

    def recommend(self, questions: Sequence[tuple[History, int]]) -> list[list[Recommendation]]:
        """The best items of each history."""
        return [self.model.recommend(history, k) for history, k in questions]

    def explain(self, questions: Sequence[tuple[History, str | None]]) -> list[Influence]:
        """The influence on one item of each history; None: its first recommendation."""
        histories = [history for history, _ in questions]
        first, _ = best_unseen(self.model, histories, 1)
        codes = [
            int(code) if item is None else int(self.model.catalogue.index([item])[0])
            for code, (_, item) in zip(first[:, 0].tolist(), questions, strict=True)
        ]
        bound = bind_items(self.model, codes)
        return [records[0] for records in self.explainer.explain_bound(histories, [bound])]

    def contrast(self, questions: Sequence[tuple[History, str, str]]) -> list[Influence]:
        """Why one item and not another, one history after the other."""
        return [
            self.explainer.explain(history, Contrast(item, over))
            for history, item, over in questions
        ]

    def fewest_to_change(self, questions: Sequence[History]) -> list[Counterfactual]:
        """The fewest events whose removal changes the first recommendation."""
        return [counterfactual(self.model, history) for history in questions]

    def fewest_to_keep(self, questions: Sequence[History]) -> list[SufficientEvents]:
        """The fewest events that alone keep the first recommendation."""
        return [sufficient_events(self.model, history) for history in questions]

    def fewest_out(
        self, history: History, found: Counterfactual | SufficientEvents, language: str
    ) -> schemas.FewestOut:
        """The fewest events as data."""
        skipped = len(history) - len(self.model.encoder.trim(history))
        if isinstance(found, Counterfactual):
            case, chosen, instead = "change", found.removed, found.flipped_to
        else:
            case, chosen, instead = "keep", found.kept, None
        places = [skipped + place for place in chosen]
        titles = self.model.catalogue.titles_by_id([found.item, *([instead] if instead else [])])
        name = titles[found.item] or found.item
        other = None if instead is None else titles[instead] or instead
        if not places:
            case += ".none"
        words = FEWEST[language][case].format(count=len(places), name=name, other=other)
        proven = FEWEST[language]["proven" if found.minimal else "open"]
        events = self.events_out(history)
        return schemas.FewestOut(
            item=found.item,
            title=name,
            places=places,
            events=[events[place] for place in places],
            instead=other,
            proven=found.minimal,
            says=words + proven,
        )

    # --- answers as data ---------------------------------------------------------------------

    def events_out(self, history: History) -> list[schemas.EventOut]:
        """The events of a history with their titles."""
        titles = self.model.catalogue.titles_by_id(history.item_ids())
        return [_event_out(event) for event in history.events(titles)]

    def users(self, search: str, limit: int) -> list[schemas.UserOut]:
        """Users of the log whose id contains a text, in the log's order."""
        if self.log is None:
            return []
        found = _matching(self.log.user_ids, search, limit)
        lengths = self.log.lengths
        return [
            schemas.UserOut(user=self.log.user_ids[row].as_py(), events=int(lengths[row]))
            for row in found
        ]

    def items(self, search: str, limit: int) -> list[schemas.ItemOut]:
        """Items whose title or id contains a text, in the catalogue's order."""
        catalogue = self.model.catalogue
        names = [title or item for title, item in zip(catalogue.titles, self._ids, strict=True)]
        rows = _matching(pa.array(names, pa.string()), search, limit)
        if len(rows) < limit:
            ids = _matching(catalogue.ids, search, limit)
            rows = [*rows, *(row for row in ids if row not in rows)][:limit]
        return [schemas.ItemOut(item=self._ids[row], title=names[row]) for row in rows]

    @cached_property
    def _ids(self) -> list[str]:
        return self.model.catalogue.ids.to_pylist()


def ranked(recommendations: Sequence[Recommendation]) -> list[schemas.Ranked]:
    """Recommendations as data."""
    return [
        schemas.Ranked(
            rank=place + 1,
            item=one.item,
            title=one.title,
            probability=one.probability,
            rules=list(one.rules),
        )
        for place, one in enumerate(recommendations)
    ]


def explained(influence: Influence, language: str, *, recommended: bool) -> schemas.ExplainOut:
    """An explanation as data."""
    errors, block = influence.standard_errors, set(influence.block)
    known = not math.isnan(influence.prediction)
    return schemas.ExplainOut(
        item=influence.target_id,
        title=influence.target_name,
        probability=influence.prediction if known else None,
        rank=influence.target_rank,
        candidates=influence.candidates,
        method=influence.quality.method,
        sentence=influence.to_text(language, recommended=recommended),
        events=[
            schemas.Scored(
                **_event_out(event).model_dump(),
                score=float(influence.values[place]),
                error=None if errors is None or math.isnan(errors[place]) else float(errors[place]),
                in_block=place in block,
            )
            for place, event in enumerate(influence.events)
        ],
        together=float(influence.values[list(block)].sum()) if block else None,
        how_sure=influence.quality.words(),
    )


def moved(before: Sequence[schemas.Ranked], after: Sequence[schemas.Ranked]) -> list[schemas.Moved]:
    """Items whose rank changed, in the order of the new list, then those that left."""
    old, new = ({one.item: one for one in slate} for slate in (before, after))
    changes = []
    for item in dict.fromkeys([*new, *old]):
        ranks = [one.rank if (one := slate.get(item)) else None for slate in (old, new)]
        if ranks[0] != ranks[1]:
            title = (new.get(item) or old[item]).title
            changes.append(schemas.Moved(item=item, title=title, before=ranks[0], after=ranks[1]))
    return changes


def says(
    before: Sequence[schemas.Ranked],
    after: Sequence[schemas.Ranked],
    changes: Sequence[schemas.Moved],
    language: str,
) -> str:
    """What moved, in one sentence."""
    if not changes or not after:
        return NOTHING_MOVED[language]
    first = after[0]
    if not before or before[0].item != first.item:
        return NEW_FIRST[language].format(name=first.title)
    return SAME_FIRST[language].format(name=first.title, count=len(changes))


def _event_out(event: Event) -> schemas.EventOut:
    return schemas.EventOut(
        item=event.item,
        title=event.name,
        behavior=event.behavior,
        timestamp=event.timestamp,
        value=event.value,
    )


def _matching(names: pa.Array, search: str, limit: int) -> list[int]:
    """Rows of the first names that contain a text; capitals do not matter."""
    found = pc.match_substring(names, search, ignore_case=True)
    return pc.indices_nonzero(pc.fill_null(found, False))[:limit].to_pylist()
