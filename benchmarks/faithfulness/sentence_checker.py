"""Holds every clause of a sentence against the numbers of its record, by regular expressions.

It does not import the grammar or its phrases. Events must be called ``N0n``, ``N1n``..., and the
target ``T``, so that a name gives the place of its event.
"""

# ruff: noqa: RUF001 - typographic signs are part of the sentences.

import math
import re
from collections.abc import Iterator

from llm_influence.influence.influence import Influence

NUMBER = r"[+−]?[\d.]+(?:e[+-]\d+)?"
EVENT = re.compile(r"[“‘]?N(\d+)n[”’]?")
CLAIMS = {
    "en": {
        "for": r"(?:because you (.*?)(?=; |\.$|\. )|[Mm]ost for it is (.*?)(?=; |\. |\.$))",
        "against": r"(?:; ([^;.]*(?:\.\d[^;.]*)*), speaks? against it|[Mm]ost against it is (.*?)"
        r"(?=; |, and none|\. |\.$))",
        "share": r"(?:share to|weight to|looked mostly at|looked most at) (.*?)\. ",
        "all": r"\) because you ",
        "most": r" mostly because you ",
        "more against": r"speak more against",
        "even": r"speak as much for",
        "moves nothing": r"None of your \d+ actions moves|Your only action does not move",
        "within errors": r"stands? out for or against|does not stand out",
        "no single": r"no single action stands out for it",
        "no sum": r"do not add up",
        "together": rf"Your (\d+) (older|other) actions together: ({NUMBER})(?: ± ({NUMBER}))?",
        "unsettled": rf"errors reach ± ({NUMBER})",
        "items": r"change most without (.*?): (\d+) of its (\d+) items would stay, (.*?) would "
        r"leave, and (.*?) would enter\.",
        "order": r"all (\d+) items would stay on the list\. Its order would change most without "
        r"(.*?): (\d+) of them",
        "no change": r"No single action changes the list",
        "time": r"\d+ \w+ earlier|same moment",
        "behavior": r"clicked|viewed|in your cart|bought|rated|favourite|did ‘",
        "chance": r"\(([<>]?[\d.]+)%(?:, ([\d,]+)(?:st|nd|rd|th) of ([\d,]+) items)?\)",
    },
    "zh": {
        "for": r"(?:因为你|首要原因是你)(.*?)(?=；|。)|最有利的是(.*?)(?=；|。)",
        "against": r"；而(.*?)起反作用|最不利的是(.*?)(?=；|，没有|。)",
        "share": r"(?:最大份额的是|最大权重的是|主要关注|最关注)(.*?)。",
        "all": r"，因为你",
        "most": r"主要因为",
        "more against": r"弊大于利",
        "even": r"利弊相当",
        "moves nothing": r"都没有影响|唯一的行为没有影响",
        "within errors": r"误差以内",
        "no single": r"没有哪一次行为单独",
        "no sum": r"之和不等于",
        "together": rf"你(较早|其余)的?(\d+)次行为合计：\D*?({NUMBER})(?:±({NUMBER}))?。",
        "unsettled": rf"误差可达±({NUMBER})",
        "items": r"若没有(.*?)，列表变化最大：(\d+)项中保留(\d+)项，(.*?)退出，(.*?)进入。",
        "order": r"列表的(\d+)项都会保留。若没有(.*?)，次序变化最大：其中(\d+)项",
        "no change": r"没有哪一次行为能单独改变列表",
        "time": r"此前\d|同时",
        "behavior": r"点击|浏览|购物车|购买|评价|打了|收藏|做了|做过",
        "chance": r"概率([<>]?[\d.]+)%(?:，在([\d,]+)个物品中排第([\d,]+))?",
    },
}


def contradictions(record: Influence, text: str, language: str = "en") -> list[str]:
    """What a sentence says against the numbers of its record; empty if it is right."""
    return list(_Checked(record, text, language).problems())


class _Checked:
    def __init__(self, record: Influence, text: str, language: str) -> None:
        self.record, self.text, self.claims = record, text, CLAIMS[language]
        self.language = language
        self.values = record.values.tolist()
        errors = record.standard_errors
        self.half = [0.0] * len(self.values) if errors is None else (1.96 * errors).tolist()
        self.adds_up = record.quality.completeness_gap <= 0.05
        block = set(record.block)
        self.alone = [p for p in range(len(self.values)) if p not in block]
        self.clear = [p for p in self.alone if abs(self.values[p]) > self.half[p]]
        self.players = [self.values[p] for p in self.alone]
        if block:
            self.players.append(sum(self.values[p] for p in block))

    def problems(self) -> Iterator[str]:
        yield from self.chance()
        if self.record.quality.units == "target":
            yield from self.effects()
            yield from self.sums()
            yield from self.together()
        else:
            named = self.named("share")
            if any(self.values[place] <= 0 for place in named):
                yield "an event without a share is named"
        yield from self.numbers()
        yield from self.change()
        for field in ("time", "behavior"):
            if field in self.record.unread and self.found(field):
                yield f"a {field} that the model does not read"

    def found(self, claim: str) -> re.Match | None:
        return re.search(self.claims[claim], self.text)

    def named(self, claim: str) -> list[int]:
        parts = [part for m in re.finditer(self.claims[claim], self.text) for part in m.groups()]
        return [int(place) for part in parts if part for place in EVENT.findall(part)]

    def chance(self) -> Iterator[str]:
        found = self.found("chance")
        if math.isnan(self.record.prediction):
            if found:
                yield "a probability that the target does not have"
            return
        if not found:
            yield "no probability"
            return
        number, first, second = found.groups()
        if number[0] not in "<>" and not _near(float(number), 100 * self.record.prediction):
            yield f"probability {number}%"
        place = (first, second) if self.language == "en" else (second, first)
        said = None if None in place else tuple(int(n.replace(",", "")) for n in place)
        rank, count = self.record.target_rank, self.record.candidates
        if said != (None if rank is None else (rank, count)):
            yield f"rank {said}"

    def effects(self) -> Iterator[str]:
        sides = {1: self.named("for"), -1: self.named("against")}
        for sign, named in sides.items():
            for place in named:
                if sign * self.values[place] <= 0:
                    yield f"N{place}n is on the wrong side"
                if place not in self.clear:
                    yield f"N{place}n is within its error or was not scored alone"
            strongest = sorted((sign * self.values[p] for p in self.clear), reverse=True)
            if [sign * self.values[p] for p in named] != strongest[: len(named)]:
                yield "a weaker event is named before a stronger one"
        named = {*sides[1], *sides[-1], *self.removed()}
        if {int(p) for p in EVENT.findall(self.text)} != named and len(self.values) > 1:
            yield "an event is named outside of every clause"

    def sums(self) -> Iterator[str]:
        total, named = sum(self.values), sum(self.values[p] for p in self.named("for"))
        positive = sum(v for v in self.players if v > 0)
        for claim, holds in (
            ("more against", self.adds_up and total < 0),
            ("even", self.adds_up and total == 0),
            ("all", self.adds_up and _near(named, positive, 1e-9)),
            ("most", self.adds_up and 2 * named > positive),
            ("moves nothing", not any(self.values)),
            ("within errors", not self.clear and any(self.values)),
            ("no single", not [p for p in self.clear if self.values[p] > 0]),
            ("no sum", not self.adds_up),
        ):
            if self.found(claim) and not holds and len(self.values) > 1:
                yield f"the claim {claim!r}"

    def together(self) -> Iterator[str]:
        found, block = self.found("together"), list(self.record.block)
        if bool(found) != bool(block):
            yield "events scored together, or their absence"
        elif found:
            first, second, score, error = found.groups()
            count, which = (first, second) if self.language == "en" else (second, first)
            older = block == list(range(len(block)))
            if int(count) != len(block) or (which in ("older", "较早")) != older:
                yield "which events were scored together"
            if not _near(_number(score), sum(self.values[p] for p in block)):
                yield f"their sum {score}"
            if not _near(_number(error or "0"), sum(self.half[p] for p in block)):
                yield f"its error {error}"
        unsettled = self.found("unsettled")
        if unsettled and not _near(_number(unsettled[1]), max(self.half)):
            yield f"the largest error {unsettled[1]}"
        if bool(unsettled) != (self.record.quality.converged is False and any(self.half)):
            yield "whether the estimate has settled"

    def removed(self) -> list[int]:
        """Events that are named for what their removal changes on a list."""
        items, order = self.found("items"), self.found("order")
        named = items[1] if items else order[2] if order else ""
        return [int(place) for place in EVENT.findall(named)]

    def change(self) -> Iterator[str]:
        change, items, order = self.record.slate_change, self.found("items"), self.found("order")
        claims = [bool(items), bool(order), bool(self.found("no change"))]
        if change is None:
            true = [False] * 3
        else:
            stay = not change.leaves
            true = [not stay, stay and change.moved > 0, stay and not change.moved]
        if claims != true:
            yield "how a removal changes the list"
            return
        if change is None or claims[2]:
            return
        if self.removed() != [change.event]:
            yield "the event that changes the list most"
        if order and (int(order[1]), int(order[3])) != (change.size, change.moved):
            yield "how many items move"
        if items:
            stays, size = int(items[2]), int(items[3])
            if self.language == "zh":
                stays, size = size, stays
            if (stays, size) != (change.size - len(change.leaves), change.size):
                yield "how many items stay"
            for said, names in ((items[4], change.leaves), (items[5], change.enters)):
                more = re.search(r"(\d+)(?: more|项)", said)
                shown = re.findall("“(.*?)”", said)
                if tuple(shown) != names[: len(shown)] or not shown:
                    yield "which items leave or enter"
                if len(shown) + (int(more[1]) if more else 0) != len(names):
                    yield "how many items leave or enter"

    def numbers(self) -> Iterator[str]:
        """The score and the value beside each name, and the total."""
        percent = self.record.quality.units == "share"
        for place, own, of in self.scores():
            value = 100 * self.values[place] if percent else self.values[place]
            if not _near(_number(own), value):
                yield f"score {own} of N{place}n"
            moved = self.record.full_value - self.record.base_value
            if of and not (self.adds_up and _near(_number(of), moved)):
                yield f"total {of}"
        if "value" in self.record.unread and re.search(
            r"(?:value|rated|数值|打了|”) ?4\.5", self.text
        ):
            yield "a value that the model does not read"

    def scores(self) -> Iterator[tuple[int, str, str | None]]:
        """Place, score and total of each named event, from the bracket that belongs to it."""
        for bracket in re.finditer(r"[(（]([^()（）]*)[)）]", self.text):
            before = EVENT.findall(self.text[: bracket.start()])
            if not before or re.search(self.claims["chance"], f"({bracket[1]})"):
                continue
            score = re.search(rf"([+−][\d.]+(?:e[+-]\d+)?)(?: of ({NUMBER}))?", bracket[1])
            chinese = re.search(rf"({NUMBER})中的([+−][\d.]+(?:e[+-]\d+)?)", bracket[1])
            share = re.search(r"([\d.]+)%", bracket[1])
            if chinese:
                yield int(before[-1]), chinese[2], chinese[1]
            elif score:
                yield int(before[-1]), score[1], score[2]
            elif share:
                yield int(before[-1]), share[1], None


def _number(text: str) -> float:
    return float(text.replace("−", "-").rstrip("."))


def _near(said: float, true: float, tolerance: float = 0.051) -> bool:
    """Equal within two digits, or within half of the second decimal."""
    return abs(said - true) <= max(tolerance * abs(true), 0.0051 if tolerance > 1e-3 else 1e-9)
