"""An `Account` in Chinese."""

from __future__ import annotations

from llm_influence.influence.facts import Account, Cited, percent, plain, signed
from llm_influence.rendering.time_words import human_duration

# ruff: noqa: RUF001, RUF002 - typographic signs are meant: this file writes for people.


# What follows 你, and what stands before the item as 你…的.
_DID = {
    "click": ("点击了{item}", "点击"),
    "view": ("浏览了{item}", "浏览"),
    "cart": ("把{item}加入了购物车", "加入购物车"),
    "purchase": ("购买了{item}", "购买"),
    "rate": ("评价了{item}", "评价"),
    "favourite": ("收藏了{item}", "收藏"),
}
_DID["favorite"] = _DID["favourite"]


def say(account: Account) -> str:
    """One sentence, or two for shares."""
    if account.kind != "effect":
        return _say_shares(account)
    if account.balance is None:
        whole = "唯一的行为" if account.events == 1 else f"的{account.events}次行为都"
        return f"你{whole}没有影响{_target(account)}。"
    if account.balance > 0:
        return f"{_subject(account)}，{_because(account)}{_against(account)}。"
    return f"{_overall(account)}。"


def _subject(account: Account) -> str:
    if account.target == "behavior":
        return f"预测下一步行为是{_target(account)}"
    if account.target == "slate":
        return f"得出{_target(account)}"
    if account.target in ("feedback", "feedback_value"):
        return f"预测{_target(account)}"
    return f"{'推荐' if account.recommended else '预测'}{_target(account)}"


def _target(account: Account) -> str:
    if account.target == "slate":
        return f"列表“{account.target_name}”"
    if account.target == "feedback":
        return f"“{account.target_name}”的正面反馈（概率{percent(account.prediction)}）"
    if account.target == "feedback_value":
        return f"“{account.target_name}”的反馈值{plain(round(account.value, 2))}"
    return f"“{account.target_name}”（概率{percent(account.prediction)}）"


def _because(account: Account) -> str:
    word = {"all": "因为", "most": "主要因为", "top": "首要原因是"}
    reasons = [
        f"{_did(cited)}（{_when(cited, account)}，{_score(cited, account, first=not place)}）"
        for place, cited in enumerate(account.supporting)
    ]
    return f"{word[account.carries]}你{'，又'.join(reasons)}"


def _against(account: Account) -> str:
    if not account.opposing:
        return ""
    return f"；而{_subjects(account.opposing, account)}起反作用"


def _overall(account: Account) -> str:
    """The history opposes the target, or is evenly divided."""
    if account.events == 1:
        (only,) = account.opposing
        seen = f"{_which(only)}“{only.name}”（{_score(only, account, first=True)}）"
        return f"你唯一的行为不利于{_target(account)}：{seen}"
    strongest = _subjects(account.opposing, account, bare=False)
    lean = "利弊相当" if account.balance == 0 else "弊大于利"
    head = f"你的行为对{_target(account)}{lean}：最不利的是{strongest}"
    if not account.supporting:
        return f"{head}，没有一次行为支持它"
    return f"{head}；最有利的是{_subjects(account.supporting, account)}"


def _say_shares(account: Account) -> str:
    target = _target(account)
    if not account.supporting:
        return f"对于{target}，方法“{account.method}”没有给你的任何行为以权重。"
    seen = _subjects(account.supporting, account, bare=False)
    if account.kind == "attention":
        most = "最关注" if account.carries == "top" else "主要关注"
        return f"对于{target}，模型{most}{seen}。注意力只说明模型看了哪里，不说明支持还是反对。"
    if account.kind == "reference":
        return (
            f"对于{target}，参照方法“{account.method}”给予最大权重的是{seen}。"
            "它只是其他方法的对照，与模型无关。"
        )
    return f"对于{target}，方法“{account.method}”给予最大份额的是{seen}。份额不说明支持还是反对。"


def _subjects(named: tuple[Cited, ...], account: Account, *, bare: bool = True) -> str:
    """``你购买的“X”（此前2天，−0.40）和你……``."""
    return "和".join(
        f"{_which(cited)}“{cited.name}”"
        f"（{_when(cited, account)}，{_score(cited, account, first=not bare and not place)}）"
        for place, cited in enumerate(named)
    )


def _did(cited: Cited) -> str:
    item = f"“{cited.name}”"
    if cited.behavior == "rate" and cited.value is not None:
        return f"给{item}打了{plain(cited.value)}分"
    if cited.behavior not in _DID:
        return f"对{item}做了“{cited.behavior}”{_value(cited)}"
    return _DID[cited.behavior][0].format(item=item) + _value(cited)


def _which(cited: Cited) -> str:
    if cited.behavior == "rate" and cited.value is not None:
        return f"你打了{plain(cited.value)}分的"
    done = _DID[cited.behavior][1] if cited.behavior in _DID else f"做过“{cited.behavior}”"
    return f"你{done}{_value(cited)}的"


def _value(cited: Cited) -> str:
    return "" if cited.value is None else f"（数值{plain(cited.value)}）"


def _when(cited: Cited, account: Account) -> str:
    if account.events == 1:
        return "唯一的行为"
    if cited.is_latest:
        return "最近一次行为"
    if cited.seconds_before == 0:
        return "与最近一次行为同时"
    return f"此前{human_duration(cited.seconds_before, 'zh')}"


def _score(cited: Cited, account: Account, *, first: bool) -> str:
    if account.in_percent:
        unit = {"attention": "注意力占", "share": "份额"}.get(account.kind, "")
        return (unit if first else "") + percent(cited.score)
    score = signed(cited.score)
    if account.kind != "effect" or not first:
        return score
    unit = {"log-odds": "对数几率", "points": "分"}.get(account.unit, account.unit)
    if account.total is not None and cited.score > 0:
        return f"{unit}{signed(account.total)}中的{score}"
    return f"{unit}{score}"
