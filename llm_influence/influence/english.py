"""An `Account` in English."""

from __future__ import annotations

from llm_influence.influence.facts import Account, Cited, percent, plain, signed
from llm_influence.rendering.time_words import human_duration

# ruff: noqa: RUF001, RUF002 - typographic signs are meant: this file writes for people.


# What follows "you", and what follows "which you".
_DID = {
    "click": ("clicked {item}", "clicked"),
    "view": ("viewed {item}", "viewed"),
    "cart": ("put {item} in your cart", "put in your cart"),
    "purchase": ("bought {item}", "bought"),
    "rate": ("rated {item}", "rated"),
    "favourite": ("marked {item} as a favourite", "marked as a favourite"),
}
_DID["favorite"] = _DID["favourite"]


def say(account: Account) -> str:
    """One sentence, or two for shares."""
    if account.kind != "effect":
        return _say_shares(account)
    if account.balance is None:
        return f"{_nothing_moves(account)} {_target(account)}."
    if account.balance > 0:
        return f"{_subject(account)} {_because(account)}{_against(account)}."
    return f"{_overall(account)}."


def _subject(account: Account) -> str:
    name, chance = account.target_name, percent(account.prediction)
    if account.target == "behavior":
        return f"‘{name}’ is predicted as the next action ({chance})"
    if account.target == "slate":
        return f"The list “{name}” stands"
    if account.target == "feedback":
        return f"Positive feedback on “{name}” is predicted ({chance})"
    if account.target == "feedback_value":
        return f"Feedback of {plain(round(account.value, 2))} on “{name}” is predicted"
    verb = "recommended" if account.recommended else "predicted"
    return f"“{name}” is {verb} ({chance})"


def _target(account: Account) -> str:
    name = account.target_name
    if account.target == "slate":
        return f"the list “{name}”"
    if account.target == "feedback":
        return f"positive feedback on “{name}” ({percent(account.prediction)})"
    if account.target == "feedback_value":
        return f"the feedback on “{name}” ({plain(round(account.value, 2))})"
    quoted = f"‘{name}’" if account.target == "behavior" else f"“{name}”"
    return f"{quoted} ({percent(account.prediction)})"


def _because(account: Account) -> str:
    word = {"all": "because", "most": "mostly because", "top": "above all because"}
    reasons = [
        f"{_did(cited)} ({_when(cited, account)}, {_score(cited, account, first=not place)})"
        for place, cited in enumerate(account.supporting)
    ]
    return f"{word[account.carries]} you {_listed(reasons)}"


def _against(account: Account) -> str:
    if not account.opposing:
        return ""
    verb = "speaks" if len(account.opposing) == 1 else "speak"
    return f"; {_subjects(account.opposing, account)}, {verb} against it"


def _overall(account: Account) -> str:
    """The history opposes the target, or is evenly divided."""
    if account.events == 1:
        (only,) = account.opposing
        seen = f"“{only.name}”, {_which(only)} ({_score(only, account, first=True)})"
        return f"Your only action speaks against {_target(account)}: {seen}"
    if account.balance == 0:
        head = f"Your actions speak as much for {_target(account)} as against it"
    else:
        head = f"Your actions speak more against {_target(account)} than for it"
    strongest = _subjects(account.opposing, account, bare=False)
    if not account.supporting:
        return f"{head}: most against it is {strongest}, and none speaks for it"
    support = _subjects(account.supporting, account)
    return f"{head}: most against it is {strongest}; most for it is {support}"


def _say_shares(account: Account) -> str:
    target = _target(account)
    if not account.supporting:
        return f"For {target} the method ‘{account.method}’ gives weight to none of your actions."
    most = "most" if account.carries == "top" else "mostly"
    seen = _subjects(account.supporting, account, bare=False)
    if account.kind == "attention":
        return (
            f"For {target} the model looked {most} at {seen}. "
            "Attention says where the model looked, not whether an action speaks for or against."
        )
    if account.kind == "reference":
        return (
            f"For {target} the reference method ‘{account.method}’ gives its largest weight to "
            f"{seen}. It is a yardstick for other methods and says nothing about the model."
        )
    return (
        f"For {target} the method ‘{account.method}’ gives its largest share to {seen}. "
        "A share does not say whether an action speaks for or against."
    )


def _subjects(named: tuple[Cited, ...], account: Account, *, bare: bool = True) -> str:
    """``“X”, which you bought (2 days earlier, −0.40), and “Y”, which ...``."""
    return ", and ".join(
        f"“{cited.name}”, {_which(cited)} "
        f"({_when(cited, account)}, {_score(cited, account, first=not bare and not place)})"
        for place, cited in enumerate(named)
    )


def _did(cited: Cited) -> str:
    item = f"“{cited.name}”"
    if cited.behavior not in _DID:
        return f"did ‘{cited.behavior}’ on {item}{_value(cited)}"
    return _DID[cited.behavior][0].format(item=item) + _value(cited)


def _which(cited: Cited) -> str:
    if cited.behavior not in _DID:
        return f"on which you did ‘{cited.behavior}’{_value(cited)}"
    return f"which you {_DID[cited.behavior][1]}{_value(cited)}"


def _value(cited: Cited) -> str:
    if cited.value is None:
        return ""
    return f" {plain(cited.value)}" if cited.behavior == "rate" else f", value {plain(cited.value)}"


def _when(cited: Cited, account: Account) -> str:
    if account.events == 1:
        return "your only action"
    if cited.is_latest:
        return "your latest action"
    if cited.seconds_before == 0:
        return "at the same moment as your latest action"
    return f"{human_duration(cited.seconds_before)} earlier"


def _score(cited: Cited, account: Account, *, first: bool) -> str:
    if account.in_percent:
        unit = {"attention": " of attention", "share": " of the whole"}.get(account.kind, "")
        return percent(cited.score) + (unit if first else "")
    score = signed(cited.score)
    if account.kind != "effect" or not first:
        return score
    if account.total is not None and cited.score > 0:
        return f"{score} of {signed(account.total)} {account.unit}"
    return f"{score} {account.unit}"


def _listed(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def _nothing_moves(account: Account) -> str:
    if account.events == 1:
        return "Your only action does not move"
    return f"None of your {account.events} actions moves"
