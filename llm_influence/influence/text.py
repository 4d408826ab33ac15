"""An influence as a sentence: one grammar, a table of phrases for each language.

The grammar reads `Facts` only. A sentence therefore names no event without influence and no
number that was not measured.
"""

# ruff: noqa: RUF001 - typographic signs are meant: these texts are for people.

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_influence.errors import ConfigError, unknown
from llm_influence.influence.facts import Cited, Facts, percent, plain, signed
from llm_influence.influence.memory_fact import MemoryFact
from llm_influence.rendering.time_words import Language, human_duration

# "did" is what follows "you"; "which" is a clause about the item. A key without its last part
# is the phrase for all other cases.
ENGLISH = {
    "target": "“{name}” ({chance})",
    "target.behavior": "‘{name}’ ({chance})",
    "target.slate": "the list “{name}”",
    "target.feedback": "positive feedback on “{name}” ({chance})",
    "target.feedback_value": "the feedback on “{name}” ({value})",
    "subject": "“{name}” is predicted ({chance})",
    "subject.recommended": "“{name}” is recommended ({chance})",
    "subject.behavior": "‘{name}’ is predicted as the next action ({chance})",
    "subject.slate": "The list “{name}” stands",
    "subject.feedback": "Positive feedback on “{name}” is predicted ({chance})",
    "subject.feedback_value": "Feedback of {value} on “{name}” is predicted",
    "supports": "{subject} {carries} you {reasons}{against}.",
    "carries.all": "because",
    "carries.most": "mostly because",
    "carries.top": "above all because",
    "reason": "{did} ({when}, {score})",
    "reasons.between": ", ",
    "reasons.last": " and ",
    "against": "; {events}, speak against it",
    "against.one": "; {events}, speaks against it",
    "moves_nothing": "None of your {events} actions moves {target}.",
    "moves_nothing.one": "Your only action does not move {target}.",
    "only_opposes": "Your only action speaks against {target}: {event}.",
    "opposes": "Your actions speak more against {target} than for it: {rest}.",
    "opposes.even": "Your actions speak as much for {target} as against it: {rest}.",
    "opposes.alone": "most against it is {opposing}, and none speaks for it",
    "opposes.both": "most against it is {opposing}; most for it is {supporting}",
    "no_share": "For {target} the method ‘{method}’ gives weight to none of your actions.",
    "share": (
        "For {target} the method ‘{method}’ gives its largest share to {events}. "
        "A share does not say whether an action speaks for or against."
    ),
    "share.baseline": (
        "For {target} the baseline method ‘{method}’ gives its largest weight to {events}. "
        "It is a yardstick for other methods and says nothing about the model."
    ),
    "share.attention": (
        "For {target} the model looked mostly at {events}. "
        "Attention says where the model looked, not whether an action speaks for or against."
    ),
    "share.attention_top": (
        "For {target} the model looked most at {events}. "
        "Attention says where the model looked, not whether an action speaks for or against."
    ),
    "event": "“{name}”, {which} ({when}, {score})",
    "event.only": "“{name}”, {which} ({score})",
    "events.between": ", and ",
    "did": "did ‘{behavior}’ on “{name}”",
    "did.click": "clicked “{name}”",
    "did.view": "viewed “{name}”",
    "did.cart": "put “{name}” in your cart",
    "did.purchase": "bought “{name}”",
    "did.rate": "rated “{name}”",
    "did_value": "rated “{name}” {value}",
    "did.favourite": "marked “{name}” as a favourite",
    "which": "on which you did ‘{behavior}’{amount}",
    "which.click": "which you clicked{amount}",
    "which.view": "which you viewed{amount}",
    "which.cart": "which you put in your cart{amount}",
    "which.purchase": "which you bought{amount}",
    "which.rate": "which you rated",
    "which_value": "which you rated {value}",
    "which.favourite": "which you marked as a favourite{amount}",
    "amount": ", value {value}",
    "when": "{duration} earlier",
    "when.only": "your only action",
    "when.latest": "your latest action",
    "when.same": "at the same moment as your latest action",
    "score": "{score} {unit}",
    "score.of_total": "{score} of {total} {unit}",
    "score.attention": "{score} of attention",
    "score.share": "{score} of the whole",
    "memory": (
        " {share} of this probability came through transitions and revisits{because}, "
        "the rest through the language model{associated}."
    ),
    "memory.because": " (people who {did} went on to “{target}”)",
    "memory.because.again": " (people who {did} came back to it)",
    "memory.associated": " with associations",
    "people.cart": "put “{name}” in their cart",
}

CHINESE = {
    "target": "“{name}”（概率{chance}）",
    "target.slate": "列表“{name}”",
    "target.feedback": "“{name}”的正面反馈（概率{chance}）",
    "target.feedback_value": "“{name}”的反馈值{value}",
    "subject": "预测{target}",
    "subject.recommended": "推荐{target}",
    "subject.behavior": "预测下一步行为是{target}",
    "subject.slate": "得出{target}",
    "supports": "{subject}，{carries}你{reasons}{against}。",
    "carries.all": "因为",
    "carries.most": "主要因为",
    "carries.top": "首要原因是",
    "reason": "{did}（{when}，{score}）",
    "reasons.between": "，又",
    "reasons.last": "，又",
    "against": "；而{events}起反作用",
    "moves_nothing": "你的{events}次行为都没有影响{target}。",
    "moves_nothing.one": "你唯一的行为没有影响{target}。",
    "only_opposes": "你唯一的行为不利于{target}：{event}。",
    "opposes": "你的行为对{target}弊大于利：{rest}。",
    "opposes.even": "你的行为对{target}利弊相当：{rest}。",
    "opposes.alone": "最不利的是{opposing}，没有一次行为支持它",
    "opposes.both": "最不利的是{opposing}；最有利的是{supporting}",
    "no_share": "对于{target}，方法“{method}”没有给你的任何行为以权重。",
    "share": "对于{target}，方法“{method}”给予最大份额的是{events}。份额不说明支持还是反对。",
    "share.baseline": (
        "对于{target}，基线方法“{method}”给予最大权重的是{events}。"
        "它只是其他方法的对照，与模型无关。"
    ),
    "share.attention": (
        "对于{target}，模型主要关注{events}。注意力只说明模型看了哪里，不说明支持还是反对。"
    ),
    "share.attention_top": (
        "对于{target}，模型最关注{events}。注意力只说明模型看了哪里，不说明支持还是反对。"
    ),
    "event": "{which}“{name}”（{when}，{score}）",
    "event.only": "{which}“{name}”（{score}）",
    "events.between": "和",
    "did": "对“{name}”做了“{behavior}”",
    "did.click": "点击了“{name}”",
    "did.view": "浏览了“{name}”",
    "did.cart": "把“{name}”加入了购物车",
    "did.purchase": "购买了“{name}”",
    "did.rate": "评价了“{name}”",
    "did_value": "给“{name}”打了{value}分",
    "did.favourite": "收藏了“{name}”",
    "which": "你做过“{behavior}”{amount}的",
    "which.click": "你点击{amount}的",
    "which.view": "你浏览{amount}的",
    "which.cart": "你加入购物车{amount}的",
    "which.purchase": "你购买{amount}的",
    "which.rate": "你评价的",
    "which_value": "你打了{value}分的",
    "which.favourite": "你收藏{amount}的",
    "amount": "（数值{value}）",
    "when": "此前{duration}",
    "when.only": "唯一的行为",
    "when.latest": "最近一次行为",
    "when.same": "与最近一次行为同时",
    "score": "{unit}{score}",
    "score.of_total": "{unit}{total}中的{score}",
    "score.attention": "注意力占{score}",
    "score.share": "份额{score}",
    "memory": "这一概率的{share}来自转移与重访{because}，其余来自语言模型{associated}。",
    "memory.because": "（{did}的人接着选择了“{target}”）",
    "memory.because.again": "（{did}的人会再次选择它）",
    "memory.associated": "（含关联）",
    "unit.log-odds": "对数几率",
    "unit.points": "分",
}

PHRASES = {"en": ENGLISH, "zh": CHINESE}


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
    return grammar.sentence() + (grammar.memory(memory) if memory else "")


class _Grammar:
    """Puts facts into the phrases of one language."""

    def __init__(self, facts: Facts, phrases: Mapping[str, str], language: str) -> None:
        self._facts, self._phrases, self._language = facts, phrases, language

    def _say(self, name: str, case: str = "", /, **parts: object) -> str:
        """The phrase for a case, or the one for all other cases, with its parts filled in."""
        phrase = self._phrases.get(f"{name}.{case}") or self._phrases[name]
        return phrase.format(**parts)

    def sentence(self) -> str:
        facts, target = self._facts, self._target()
        one = "one" if facts.events == 1 else ""
        if facts.kind != "effect":
            return self._shares(target)
        if facts.balance is None:
            return self._say("moves_nothing", one, events=facts.events, target=target)
        if facts.balance > 0:
            return self._supports(target)
        if one:
            event = self._event(facts.opposing[0], "only", first=True)
            return self._say("only_opposes", target=target, event=event)
        rest = self._say(
            "opposes",
            "both" if facts.supporting else "alone",
            opposing=self._events(facts.opposing, first=True),
            supporting=self._events(facts.supporting),
        )
        even = "even" if facts.balance == 0 else ""
        return self._say("opposes", even, target=target, rest=rest)

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
            because = self._say(f"memory.{case}", did=did, target=self._facts.target_name)
        associated = self._say("memory.associated") if fact.associated else ""
        share = percent(fact.share)
        return self._say("memory", share=share, because=because, associated=associated)

    def _names(self) -> dict[str, str]:
        facts = self._facts
        value = "" if facts.target != "feedback_value" else plain(round(facts.value, 2))
        return {"name": facts.target_name, "chance": percent(facts.prediction), "value": value}

    def _target(self) -> str:
        return self._say("target", self._facts.target, **self._names())

    def _supports(self, target: str) -> str:
        facts = self._facts
        on_list = facts.recommended and facts.target in ("item", "contrast")
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
        case = "recommended" if on_list else facts.target
        number = "one" if len(facts.opposing) == 1 else ""
        against = self._say("against", number, events=self._events(facts.opposing))
        return self._say(
            "supports",
            subject=self._say("subject", case, target=target, **self._names()),
            carries=self._say(f"carries.{facts.carries}"),
            reasons=listed + self._say("reasons.last") + last if before else last,
            against=against if facts.opposing else "",
        )

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
        return self._say(
            f"{name}_value" if rated else name,
            "favourite" if cited.behavior == "favorite" else cited.behavior,
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
        if cited.is_latest:
            return self._say("when.latest")
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
        unit = self._phrases.get(f"unit.{facts.unit}", facts.unit)
        if facts.total is not None and cited.score > 0:
            return self._say("score.of_total", score=score, total=signed(facts.total), unit=unit)
        return self._say("score", score=score, unit=unit)
