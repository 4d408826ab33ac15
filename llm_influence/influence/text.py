"""An influence in a sentence, made from a template, so that it cannot say what is not so."""

from __future__ import annotations

from llm_influence.errors import ConfigError, choices
from llm_influence.influence import chinese, english
from llm_influence.influence.facts import account_for
from llm_influence.influence.influence import Influence

_LANGUAGES = {"en": english.say, "zh": chinese.say}


def to_text(
    influence: Influence, language: str = "en", *, most: int = 2, recommended: bool = False
) -> str:
    """Say in one sentence, or two, which events moved the target.

    Only events that carry the influence are named, with their own numbers. Scores that are
    effects on the target become reasons for and against; shares (attention) are only ever said
    to be shares; a reference method (random, recency) is said to be one. "Earlier" counts from
    the latest event of the history, the moment of the prediction.

    Args:
        influence: An explanation of at least one event.
        language: ``"en"`` or ``"zh"``.
        most: How many events to name on each side, at most.
        recommended: Say "recommended" rather than "predicted". Pass True only for an item that
            is on the user's list of recommendations; the influence itself does not know.

    Raises:
        ConfigError: The language is not known, ``most`` is below 1, or there is no event.
    """
    if language not in _LANGUAGES:
        raise ConfigError(
            f"language {language!r}",
            where="to_text",
            expected=choices(_LANGUAGES, language),
            fix="name one of these languages",
        )
    if most < 1 or not len(influence.events):
        raise ConfigError(
            f"most={most} for an explanation of {len(influence.events)} events",
            where="to_text",
            expected="at least one event, and most of at least 1",
            fix="explain a history that has events, and leave most at 2",
        )
    return _LANGUAGES[language](
        account_for(influence.by_event(), most=most, recommended=recommended)
    )
