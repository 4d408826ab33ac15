"""What a batch explains: whole histories of a log, or the questions of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_influence.attribution.explainer import Explainer
from llm_influence.attribution.targets import Next, Target, bind_next, parse_target
from llm_influence.data.log import BehaviorLog
from llm_influence.data.splits import EvaluationSet
from llm_influence.errors import ExplanationError
from llm_influence.influence.record import Influence
from llm_influence.types import History


@dataclass(frozen=True, eq=False)
class Asked:
    """N histories to be explained, in the model's codes.

    Attributes:
        log: The log they are of.
        questions: The questions whose histories they are; None: every user's whole history.
        moment: When whole histories are asked, Unix seconds; None where it is not known.
    """

    log: BehaviorLog
    questions: EvaluationSet | None = None
    moment: int | None = None

    @classmethod
    def of(cls, source: BehaviorLog | EvaluationSet, moment: int | None) -> Asked:
        """All histories of a log, or of questions.

        Raises:
            ExplanationError: Questions are given another moment, or a history goes on after it.
        """
        if isinstance(source, BehaviorLog):
            last = int(source.timestamps[source.offsets[1:] - 1].max())
            if moment is not None and moment < last:
                raise ExplanationError(
                    f"a history goes on for {last - moment} seconds after the moment asked",
                    where="asked_at",
                    expected=f"a moment not before the last event, {last} in Unix seconds",
                    fix="ask later, or explain a log that ends earlier",
                )
            return cls(source, moment=moment)
        if moment is not None:
            raise ExplanationError(
                "questions of a split and a moment for all",
                where="asked_at",
                expected="one of them: a question is asked when what it asks for happened",
                fix="leave asked_at out",
            )
        return cls(source.log, source)

    def __len__(self) -> int:
        """Number of histories N."""
        return len(self.log if self.questions is None else self.questions)

    def history(self, row: int) -> History:
        """History number ``row``, with the moment it is asked at."""
        if self.questions is not None:
            return self.questions.history(row)
        return replace(self.log.at(row), asked_at=self.moment)

    def target(self, text: str) -> Target:
        """The target as on the command line.

        Raises:
            ExplanationError: It cannot be read, or is what came next where nobody knows.
        """
        target = parse_target(text)
        if isinstance(target, Next) and self.questions is None:
            raise ExplanationError(
                "what came next is not known of whole histories",
                where=f"target {text!r}",
                expected="questions of a split",
                fix="explain questions (--questions test), or name an item or behaviour",
            )
        return target

    def explain(self, explainer: Explainer, rows: Sequence[int], target: Target) -> list[Influence]:
        """Explain the histories of these rows."""
        histories = [self.history(row) for row in rows]
        if not isinstance(target, Next) or self.questions is None:
            return explainer.explain(histories, target)
        found: list[Influence] = []
        for part in explainer.batches(histories):
            asked = self.questions.select(rows[len(found) : len(found) + len(part)])
            bound = bind_next(target, explainer.model, asked)
            found += [records[0] for records in explainer.explain_bound(part, [bound])]
        return found

    def fingerprint(self, log: str) -> str:
        """Digest of what is explained; ``log`` is the log's own, and the whole for plain logs."""
        if self.questions is None:
            return log if self.moment is None else f"{log} at {self.moment}"
        digest = hashlib.sha256(np.ascontiguousarray(self.questions.users).tobytes())
        digest.update(np.ascontiguousarray(self.questions.positions).tobytes())
        return f"{log} asked {digest.hexdigest()[:16]}"
