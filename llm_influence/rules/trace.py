"""Which rule changed which recommendation: for people who ask why something is not there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuleChange:
    """One rule and one item that is recommended, or would be without the rules.

    Attributes:
        rule: The rule's name.
        item: Item id.
        title: Its name for people; the id where there is none.
        boost: What the rule adds to the item's logit; None where it excludes the item.
        before: The item's place without any rule, from 1.
        after: Its place with all of them; None where it is excluded.
    """

    rule: str
    item: str
    title: str
    boost: float | None
    before: int
    after: int | None

    def to_text(self) -> str:
        """One line: ``no horror for children: Scream (1996) left out, else at place 3``."""
        if self.boost is None:
            return f"{self.rule}: {self.title} left out, else at place {self.before}"
        places = f"place {self.before} to " + (
            "left out" if self.after is None else f"place {self.after}"
        )
        return f"{self.rule}: {self.title} by {self.boost:+g}, {places}"
