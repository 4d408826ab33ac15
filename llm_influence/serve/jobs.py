"""One thread for the model: jobs that wait are run together, as one batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

MOST_TOGETHER = 32
MOST_WAITING = 256
"""Jobs that may wait; further ones are refused, so that nobody waits for ever."""

Together = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(eq=False)
class _Job:
    together: Together
    argument: Any
    answer: Future[Any] = field(default_factory=Future)


class BusyError(Exception):
    """Too many jobs wait."""


class Jobs:
    """Runs jobs of one model in one thread.

    A job is an argument and a function of a list of arguments. Jobs of the same function that wait
    are given to one call of it. If the call fails, each of its jobs is tried alone, so that one bad
    argument does not fail the others.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[_Job | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, together: Together, argument: Any) -> Future[Any]:  # noqa: ANN401 - any job
        """Add a job; its future has the answer.

        Raises:
            BusyError: Too many jobs wait.
        """
        job = _Job(together, argument)
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise BusyError from None
        return job.answer

    def close(self) -> None:
        """Finish the jobs that wait, and stop."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        kept: _Job | None = None
        while True:
            first = kept or self._waiting.get()
            kept = None
            if first is None:
                return
            batch = [first]
            while len(batch) < MOST_TOGETHER:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._waiting.put(None)
                    break
                if following.together is not first.together:
                    kept = following
                    break
                batch.append(following)
            _answer([job for job in batch if job.answer.set_running_or_notify_cancel()])


def _answer(batch: Sequence[_Job]) -> None:
    if not batch:
        return
    try:
        answers = batch[0].together([job.argument for job in batch])
    except Exception as error:  # noqa: BLE001 - it is raised again where the answer is read
        if len(batch) == 1:
            batch[0].answer.set_exception(error)
            return
        for job in batch:
            _answer([_Job(job.together, job.argument, job.answer)])
        return
    for job, answer in zip(batch, answers, strict=True):
        job.answer.set_result(answer)
