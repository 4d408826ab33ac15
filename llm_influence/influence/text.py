"""An influence as a sentence: one grammar; the phrases of each language are apart.

The grammar reads `Facts` only. A sentence therefore names no event within its own error and no
number that was not measured, and adds up nothing that does not add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_influence.errors import ConfigError, unknown
from llm_influence.influence.facts import percent, plain, signed, tidy
from llm_influence.influence.memory_fact import MemoryFact
from llm_influence.influence.phrases import PHRASES
from llm_influence.influence.sentence_facts import Cited, Facts
from llm_influence.rendering.time_words import Language, human_duration

_LISTED = 3
"""Items that are named of those that leave a list, and of those that enter it."""


def sentence(facts: Facts, language: str = "en", memory: MemoryFact | None = None) -> str:
    """State facts in one sentence, or in two for shares, and one more on the memory.

    Args:
        facts: What may be stated.
        language: ``"en"`` (English) or ``"zh"`` (Chinese).
        memory: What came through the memory; None without anything to state.

    Raises:
        ConfigError: The language is unknown.
    """
    if language not in PHRASES:
        raise unknown(ConfigError, "language", language, PHRASES, where="to_text")
    grammar = _Grammar(facts, PHRASES[language], language)
    return grammar.sentence() + grammar.change() + (grammar.memory(memory) if memory else "")


class _Grammar:
    """Puts facts into the phrases of one language."""

    def __init__(self, facts: Facts, phrases: Mapping[str, str], language: str) -> None:
        self._facts, self._phrases, self._language = facts, phrases, language

    def _say(self, name: str, case: str = "", /, **parts: object) -> str:
        """The phrase for a case, or the one for all other cases, with its parts filled in."""
        phrase = self._phrases.get(f"{name}.{case}") or self._phrases[name]
        return phrase.format(**parts)

    def sentence(self) -> str:
        """The statement, and what was scored together or has not settled."""
        facts = self._facts
        if facts.kind != "effect":
            return self._shares(self._target())
        parts = [self._statement(self._target())]
        unit = self._phrases.get(f"unit.{facts.target.unit}", facts.target.unit)
        if (block := facts.together) is not None:
            size = self._say("together.error", error=signed(block.error)[1:])
            parts.append(
                self._say(
                    "together",
                    "older" if block.older else "",
                    count=block.events,
                    score=signed(block.score),
                    error=size if block.error else "",
                    unit=unit,
                )
            )
        if facts.unsettled is not None:
            error = signed(facts.unsettled)[1:]
            parts.append(self._say("unsettled", error=error, unit=unit))
        return "".join(parts)

    def _statement(self, target: str) -> str:
        facts, one = self._facts, "one" if self._facts.events == 1 else ""
        if facts.balance is None:
            return self._say("moves_nothing", one, events=facts.events, target=target)
        if not facts.supporting and not facts.opposing:
            return self._say("within_errors", one, events=facts.events, target=target)
        if not facts.adds_up and not one:
            rest = self._say("separate", self._sides(), **self._both_sides("supporting"))
            return self._say("separate", subject=self._subject(target), rest=rest)
        if facts.balance > 0:
            return self._supports(target)
        if one:
            event = self._event(facts.opposing[0], "only", first=True)
            return self._say("only_opposes", target=target, event=event)
        case = {"against": "alone"}.get(self._sides(), self._sides())
        rest = self._say("opposes", case, **self._both_sides("opposing"))
        even = "even" if facts.balance == 0 else ""
        return self._say("opposes", even, target=target, rest=rest)

    def _sides(self) -> str:
        facts = self._facts
        if facts.supporting and facts.opposing:
            return "both"
        return "for" if facts.supporting else "against"

    def _both_sides(self, first: str) -> dict[str, str]:
        """The events of both sides; only the first number, of the side named first, has a unit."""
        facts = self._facts
        alone = not (facts.supporting and facts.opposing)
        return {
            name: self._events(cited, first=alone or name == first)
            for name, cited in (("supporting", facts.supporting), ("opposing", facts.opposing))
        }

    def memory(self, fact: MemoryFact) -> str:
        """What came through the memory; nothing for a baseline, which is not about the model."""
        if self._facts.kind == "baseline":
            return ""
        because = ""
        if fact.name:
            behavior = "favourite" if fact.behavior == "favorite" else fact.behavior
            phrase = self._phrases.get(f"people.{behavior}")
            parts = {"name": fact.name, "behavior": fact.behavior}
            did = phrase.format(**parts) if phrase else self._say("did", behavior, **parts)
            case = "because.again" if fact.again else "because"
            because = self._say(f"memory.{case}", did=did, target=self._facts.target.name)
        associated = self._say("memory.associated") if fact.associated else ""
        share = percent(fact.share)
        return self._say("memory", share=share, because=because, associated=associated)

    def change(self) -> str:
        """The event whose removal changes a list most, and how; nothing for a baseline."""
        if self._facts.change is None or self._facts.kind == "baseline":
            return ""
        cited, change = self._facts.change
        return self._say(
            "change",
            "items" if change.leaves else "order" if change.moved else "none",
            event=self._event(cited, "removed", first=False),
            stays=change.stays,
            size=change.size,
            moved=change.moved,
            leaves=self._listed(change.leaves),
            enters=self._listed(change.enters),
        )

    def _listed(self, names: Sequence[str]) -> str:
        """The first names in a row, and the number of the others."""
        quoted = [self._say("listed", name=tidy(name)) for name in names[:_LISTED]]
        if len(names) > _LISTED:
            quoted.append(self._say("listed.more", count=len(names) - _LISTED))
        *before, last = quoted or [""]
        listed = self._say("listed.between").join(before)
        return listed + self._say("listed.last") + last if before else last

    def _names(self) -> dict[str, str]:
        target = self._facts.target
        value = "" if target.kind != "feedback_value" else plain(round(target.value, 2))
        chance = percent(target.prediction)
        if target.place is not None:
            rank, candidates = target.place
            number = _ordinal(rank) if self._language == "en" else str(rank)
            chance = self._say(
                "chance", "place", chance=chance, rank=number, candidates=f"{candidates:,}"
            )
        return {"name": target.name, "chance": chance, "value": value}

    def _target(self) -> str:
        return self._say("target", self._facts.target.kind, **self._names())

    def _subject(self, target: str) -> str:
        goal = self._facts.target
        on_list = goal.recommended and goal.kind in ("item", "contrast")
        case = "recommended" if on_list else goal.kind
        return self._say("subject", case, target=target, **self._names())

    def _supports(self, target: str) -> str:
        facts = self._facts
        number = "one" if len(facts.opposing) == 1 else ""
        against = self._say("against", number, events=self._events(facts.opposing))
        parts = {
            "subject": self._subject(target),
            "carries": self._say(f"carries.{facts.carries}"),
            "against": against if facts.opposing else "",
        }
        if not facts.supporting:
            return self._say("supports", "none", **parts)
        reasons = [
            self._say(
                "reason",
                did=self._action("did", cited) + self._amount(cited),
                when=self._when(cited),
                score=self._score(cited, first=not place),
            )
            for place, cited in enumerate(facts.supporting)
        ]
        *before, last = reasons
        listed = self._say("reasons.between").join(before)
        named = listed + self._say("reasons.last") + last if before else last
        return self._say("supports", reasons=named, **parts)

    def _shares(self, target: str) -> str:
        facts = self._facts
        if not facts.supporting:
            return self._say("no_share", target=target, method=facts.method)
        top = facts.kind == "attention" and facts.carries == "top"
        events = self._events(facts.supporting, first=True)
        case = "attention_top" if top else facts.kind
        return self._say("share", case, target=target, method=facts.method, events=events)

    def _events(self, cited: Sequence[Cited], *, first: bool = False) -> str:
        """Events in a row; only the ``first`` number of a sentence has its unit."""
        named = (self._event(one, first=first and not place) for place, one in enumerate(cited))
        return self._say("events.between").join(named)

    def _event(self, cited: Cited, case: str = "", *, first: bool) -> str:
        return self._say(
            "event",
            case,
            name=cited.name,
            which=self._action("which", cited),
            when=self._when(cited),
            score=self._score(cited, first=first),
        )

    def _action(self, name: str, cited: Cited) -> str:
        rated = cited.behavior == "rate" and cited.value is not None
        behavior = "favourite" if cited.behavior == "favorite" else cited.behavior
        if behavior is None:
            return self._say(f"{name}.unread", name=cited.name, amount=self._amount(cited))
        return self._say(
            f"{name}_value" if rated else name,
            behavior,
            name=cited.name,
            behavior=cited.behavior,
            value="" if cited.value is None else plain(cited.value),
            amount=self._amount(cited),
        )

    def _amount(self, cited: Cited) -> str:
        if cited.value is None or cited.behavior == "rate":
            return ""
        return self._say("amount", value=plain(cited.value))

    def _when(self, cited: Cited) -> str:
        if self._facts.events == 1:
            return self._say("when.only")
        if not cited.events_after:
            return self._say("when.latest")
        if cited.seconds_before is None:
            number = "one" if cited.events_after == 1 else ""
            return self._say("when.order", number, count=cited.events_after)
        if cited.seconds_before == 0:
            return self._say("when.same")
        language: Language = "zh" if self._language == "zh" else "en"
        return self._say("when", duration=human_duration(cited.seconds_before, language))

    def _score(self, cited: Cited, *, first: bool) -> str:
        facts = self._facts
        score = percent(cited.score) if facts.in_percent else signed(cited.score)
        if not first:
            return score
        if facts.in_percent:
            phrase = self._phrases.get(f"score.{facts.kind}", "{score}")
            return phrase.format(score=score)
        if facts.kind != "effect":
            return score
        unit = self._phrases.get(f"unit.{facts.target.unit}", facts.target.unit)
        if facts.total is not None and cited.score > 0:
            return self._say("score.of_total", score=score, total=signed(facts.total), unit=unit)
        return self._say("score", score=score, unit=unit)


def _ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``1,203rd``, ``11th``."""
    teens = 10 < number % 100 < 20
    ending = "th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending}"
