"""Windows shown in another way: cut, with events hidden, in another order, in other words.

The kinds are those of CL4SRec (Xie et al. 2022, arXiv:2010.14395), and paraphrase by template.
Whatever is shown, the labels are those of the view's own events: each is asked from the state
after the events that the view shows before it, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_influence.config import AugmentationConfig
from llm_influence.errors import ConfigError, TemplateError
from llm_influence.rendering.encoder import Encoder
from llm_influence.rendering.template import Template
from llm_influence.types import BoolArray, History, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One way of showing a window of E events and the one after it.

    Attributes:
        shown: (M,) the window's events that are shown, in the order in which.
        after: The event after those, which is a label alone.
        hidden: (M,) bool, shown events that are hidden from attention: removal ``mask``.
        template: Number of the template, 0 for the model's own.
    """

    shown: IntArray
    after: int
    hidden: BoolArray
    template: int = 0

    @classmethod
    def whole(cls, events: int) -> View:
        """The window as it is."""
        return cls(np.arange(events), events, np.zeros(events, dtype=bool))

    def of(self, window: History) -> History:
        """The M events shown and the one after them, from the E + 1 of a window.

        Events that change places change times too: time never runs backwards.
        """
        changed = window.keep(np.append(self.shown, self.after))
        return replace(changed, timestamps=np.sort(changed.timestamps))


class Views:
    """Draws how windows are shown.

    A draw depends on the seed, the epoch, the window and the view's number alone, never on its
    batch or process.

    Args:
        config: The kinds and their strengths; default: windows are shown as they are.
        seed: Of all draws.
    """

    def __init__(self, config: AugmentationConfig | None = None, *, seed: int = 0) -> None:
        self.config, self.seed = config or AugmentationConfig(), seed
        self._kinds = self.config.kinds

    def trained(self, events: int, *, epoch: int, user: int, start: int) -> View:
        """How a window of so many events is shown to the heads: changed in a share of the cases."""
        if not self._kinds or not self.config.share:
            return View.whole(events)
        draw = self._generator(epoch, user, start, view=0)
        return (
            self._changed(events, draw) if draw.random() < self.config.share else View.whole(events)
        )

    def pair(self, events: int, *, epoch: int, user: int, start: int) -> tuple[View, View]:
        """Two ways of showing a window for the contrastive loss, both changed."""
        first, second = (self._generator(epoch, user, start, view=view) for view in (1, 2))
        return self._changed(events, first), self._changed(events, second)

    def _generator(self, epoch: int, user: int, start: int, *, view: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, user, start, 1 + view])

    def _changed(self, events: int, draw: np.random.Generator) -> View:
        kind = self._kinds[draw.integers(len(self._kinds))]
        if kind == "templates":
            template = int(draw.integers(1 + len(self.config.templates)))
            return replace(View.whole(events), template=template)
        touched = min(
            round(getattr(self.config, kind) * events), max(0, events - (kind != "reorder"))
        )
        if kind == "crop":
            start = int(draw.integers(touched + 1))
            stop = start + events - touched
            return View(np.arange(start, stop), stop, np.zeros(stop - start, dtype=bool))
        view = View.whole(events)
        if kind == "mask":
            view.hidden[draw.permutation(events)[:touched]] = True
        else:
            start = int(draw.integers(events - touched + 1))
            draw.shuffle(view.shown[start : start + touched])
        return view


def paraphrases(encoder: Encoder, templates: Sequence[str]) -> list[Encoder]:
    """Encoders that say the same in the words of other templates.

    Raises:
        ConfigError: A template is not there, or does not say what the model's own says.
    """
    found = []
    for name in templates:
        try:
            found.append(encoder.with_template(Template.load(name)))
        except TemplateError as error:
            raise ConfigError(
                error.found,
                where=f"train.augmentation.templates, {name!r}",
                expected=error.expected,
                fix=error.fix,
            ) from error
    return found
