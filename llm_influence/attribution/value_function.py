"""The value of the target with any subset of the players, and the renderings behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llm_influence.attribution.engine import Engine
from llm_influence.attribution.target import BoundTarget
from llm_influence.errors import ExplanationError, unknown
from llm_influence.influence.facts import USER, Player
from llm_influence.modeling.backbone import inference
from llm_influence.modeling.counts import QueryState
from llm_influence.modeling.model import InfluenceModel
from llm_influence.rendering.encoder import EncodedBatch, EncodedHistories, Encoder, collate
from llm_influence.rendering.template import FIELDS
from llm_influence.types import BoolArray, FloatArray, History, IntArray

Kind = Literal["events", "fields"]
KINDS: tuple[Kind, ...] = ("events", "fields")


@dataclass(frozen=True, slots=True)
class Players:
    """The units that may be kept or removed.

    Attributes:
        kind: ``events``, or ``fields``: each event's behaviour, item, text, gap and value, as far
            as the template renders them.
        user: Whether the prompt's words (the user's features among them) are one more player, the
            last one.
    """

    kind: Kind = "events"
    user: bool = False

    def __str__(self) -> str:
        """The text that `parse` accepts."""
        return f"{self.kind}+user" if self.user else self.kind

    @classmethod
    def parse(cls, text: str) -> Players:
        """From ``events``, ``fields``, ``events+user`` or ``fields+user``.

        Raises:
            ExplanationError: Another word.
        """
        known = {str(cls(k, u)): cls(k, u) for u in (False, True) for k in KINDS}
        if text not in known:
            raise unknown(ExplanationError, "players", text, known, where="players")
        return known[text]

    @property
    def are_events(self) -> bool:
        """Whether the players are the events and nothing else."""
        return self.kind == "events" and not self.user

    def check_removal(self, removal: str) -> None:
        """Refuse a removal that cannot remove a part of an event, with an `ExplanationError`."""
        if not self.are_events and removal != "replace":
            raise ExplanationError(
                f"removal {removal!r} of parts of events",
                where="players",
                expected="'replace': a part of an event cannot be dropped or masked",
                fix="set removal to replace or leave it out, or explain whole events",
            )

    def of(self, history: History, encoder: Encoder) -> list[Player]:
        """The players of one history, in the order of masks and scores."""
        names = self._names(encoder)
        players = [Player(event, name) for event in range(len(history)) for name in names]
        return [*players, USER] if self.user else players

    def tokens(
        self, encoded: EncodedHistories, encoder: Encoder, masks: Sequence[BoolArray]
    ) -> tuple[BoolArray, BoolArray]:
        """(T,) whether a token stays, and (T, A) whether the ids added to it stay.

        Args:
            encoded: R renderings of whole histories.
            encoder: That rendered them.
            masks: R arrays (P,), True where a player is kept.
        """
        own, added = self.owners(encoded.event_index, encoded.field_index, encoder)
        sizes = np.array([len(mask) for mask in masks], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        kept = np.concatenate([*masks, np.ones(1, dtype=bool)])  # the last one is for the prompt
        prompt_player = first + sizes - 1 if self.user else np.full(len(masks), len(kept) - 1)
        owner = np.repeat(np.arange(len(masks)), np.diff(encoded.offsets))
        in_prompt = encoded.event_index < 0
        own = np.where(in_prompt, prompt_player[owner], first[owner] + own)
        added = np.where(in_prompt[:, None], len(kept) - 1, first[owner, None] + added)
        return kept[own], kept[added]

    def owners(
        self, event_index: IntArray, field_index: IntArray, encoder: Encoder
    ) -> tuple[IntArray, IntArray]:
        """The player of each token, as a number in its own history; -1 for the prompt.

        Args:
            event_index: (...) of tokens.
            field_index: (...) of the same tokens.
            encoder: That rendered them.

        Returns:
            (...) players of the tokens, and (..., A) those of what is added to them.
        """
        names = self._names(encoder)
        added_names = [names.index(name) if name in names else 0 for name in encoder.template.added]
        base, in_prompt = event_index * len(names), event_index < 0
        own = np.where(in_prompt, -1, base + self._field(field_index, names))
        added = base[..., None] + np.array(added_names, dtype=np.int64)
        return own, np.where(in_prompt[..., None], -1, added)

    def _names(self, encoder: Encoder) -> list[str | None]:
        """Fields that each event's players stand for; one None for the event as a whole."""
        if self.kind == "events":
            return [None]
        return [name for name in FIELDS if name in encoder.template.fields]

    def _field(self, field_index: IntArray, names: Sequence[str | None]) -> IntArray:
        """(...) which of an event's players a token belongs to; the template's words: the first."""
        if self.kind == "events":
            return np.zeros_like(field_index)
        place = np.zeros(len(FIELDS) + 1, dtype=np.int64)
        for number, name in enumerate(names):
            place[FIELDS.index(str(name))] = number
        return place[field_index]


EVENTS = Players()
"""Whole events."""


Removal = Literal["drop", "mask", "replace"]
REMOVALS: tuple[Removal, ...] = ("drop", "mask", "replace")

OWN = -2
"""Value of `Renderings.neutral` for a token that keeps its own vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Renderings:
    """R renderings, one after the other, T tokens in all.

    Attributes:
        encoded: The tokens.
        visible: (T,) False where a token is hidden.
        neutral: (T,) `OWN`, or the field whose mean vector replaces the token's own.
    """

    encoded: EncodedHistories
    visible: BoolArray
    neutral: IntArray

    def __len__(self) -> int:
        """Number of renderings R."""
        return len(self.encoded)

    @property
    def lengths(self) -> IntArray:
        """(R,) tokens, hidden ones included."""
        return np.diff(self.encoded.offsets)

    def batch(self, rows: IntArray) -> tuple[EncodedBatch, Tensor]:
        """Renderings as a padded batch, and (B, T) `neutral` of its tokens."""
        batch = collate(self.encoded, rows)
        starts, lengths = self.encoded.offsets[rows], self.lengths[rows]
        places = np.arange(batch.input_ids.shape[1])
        flat = np.where(places < lengths[:, None], starts[:, None] + places, 0)
        shown = batch.attention_mask & torch.from_numpy(self.visible[flat])
        return replace(batch, attention_mask=shown), torch.from_numpy(self.neutral[flat])

    def records(self) -> tuple[IntArray, IntArray, IntArray]:
        """Visible tokens as numbers: all that the model reads of them.

        Returns:
            (V, 3 + A) token, place, neutral, added ids; (V,) the rendering; (V,) the event.
        """
        owner = np.repeat(np.arange(len(self)), self.lengths)
        place = np.arange(len(owner)) - np.repeat(self.encoded.offsets[:-1], self.lengths)
        columns = [self.encoded.input_ids, place, self.neutral]
        table = np.column_stack([*columns, self.encoded.added_ids]).astype(np.int64)
        table[self.neutral != OWN, 0] = 0  # its own word is not used
        shown = self.visible
        return table[shown], owner[shown], self.encoded.event_index[shown]


def render(
    encoder: Encoder,
    histories: Sequence[History],
    players: Players,
    rows: Sequence[int],
    masks: Sequence[BoolArray],
    removal: Removal,
) -> Renderings:
    """Render every coalition.

    Args:
        encoder: Of the model.
        histories: N histories that fit the context.
        players: Who may be kept or removed.
        rows: R numbers of histories.
        masks: R arrays (P,), True where a player is kept.
        removal: What happens to the others; `drop` is for whole events.
    """
    if removal == "drop":
        kept = [histories[row].keep(mask) for row, mask in zip(rows, masks, strict=True)]
        encoded = encoder.encode(kept)
        size = len(encoded.input_ids)
        return Renderings(encoded, np.ones(size, dtype=bool), np.full(size, OWN))
    encoded = _repeated(encoder.encode(histories), np.asarray(rows, dtype=np.int64))
    stays, added_stays = players.tokens(encoded, encoder, masks)
    added = np.where(added_stays, encoded.added_ids, -1)
    encoded = replace(encoded, added_ids=added)
    if removal == "mask":
        return Renderings(encoded, stays, np.full(len(stays), OWN))
    neutral = np.where(stays, OWN, encoded.field_index)
    return Renderings(encoded, np.ones_like(stays), neutral)


def _repeated(encoded: EncodedHistories, rows: IntArray) -> EncodedHistories:
    """The histories numbered ``rows``, one after the other."""
    lengths = np.diff(encoded.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.repeat(encoded.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return EncodedHistories(
        input_ids=encoded.input_ids[flat],
        event_index=encoded.event_index[flat],
        field_index=encoded.field_index[flat],
        added_ids=encoded.added_ids[flat],
        offsets=offsets,
        num_events=encoded.num_events[rows],
        left_out=encoded.left_out[rows],
        when=encoded.when[rows],
    )


ROWS = 256
"""States whose targets are computed at a time; affects memory alone."""

Known = list[dict[bytes, float]]
"""Values of each of N histories by coalition."""


class ValueFunction:
    """Values of one target for subsets of the players of N histories.

    `llm_influence.attribution.value_function` defines the removals. Without any event the model reads
    the prompt alone.

    Args:
        model: The model.
        histories: N histories that fit the context (`Encoder.trim`).
        target: The target, bound to the same histories.
        removal: What "without a player" means.
        players: Who is kept or removed.
        engine: Default: a new one. Share it between targets and methods.
        known: Values shared with another value function, see `view`.

    Attributes:
        evaluations: (N,) coalitions of each history so far, each counted once. The engine may
            compute fewer: renderings of other users, targets and methods are kept.
        bfloat16_error: Largest difference from float32 of a value so far, on renderings computed
            both ways (`Engine`); nan without any.

    Raises:
        ExplanationError: Parts of events cannot be dropped.
    """

    def __init__(
        self,
        model: InfluenceModel,
        histories: Sequence[History],
        target: BoundTarget,
        removal: Removal = "drop",
        *,
        players: Players | None = None,
        engine: Engine | None = None,
        known: Known | None = None,
    ) -> None:
        self.players = players or Players()
        self.players.check_removal(removal)
        self._model, self._histories, self._target = model, histories, target
        self.removal = removal
        self.engine = engine or Engine(model)
        self._known: Known = [{} for _ in histories] if known is None else known
        self._counted: list[set[bytes]] = [set() for _ in histories]
        self.evaluations: IntArray = np.zeros(len(histories), dtype=np.int64)
        self.bfloat16_error = float("nan")

    def view(self) -> ValueFunction:
        """The same values for another method, whose evaluations are counted from zero.

        A coalition that is already known costs nothing now, but the method alone would have
        evaluated it, so it is counted.
        """
        return ValueFunction(
            self._model,
            self._histories,
            self._target,
            self.removal,
            players=self.players,
            engine=self.engine,
            known=self._known,
        )

    @property
    def sizes(self) -> list[int]:
        """(N,) players of each history."""
        if self.players.are_events:
            return [len(history) for history in self._histories]
        return [len(self.players.of(h, self._model.encoder)) for h in self._histories]

    def __call__(self, masks: Sequence[BoolArray]) -> list[FloatArray]:
        """Values of masks.

        Args:
            masks: For each of the N histories an (M, P) bool array, True where a player is kept;
                M may differ between histories.

        Returns:
            For each history the (M,) values, log-odds.
        """
        rows: list[int] = []
        new: list[BoolArray] = []
        for row, of_row in enumerate(masks):
            distinct = {mask.tobytes(): mask for mask in of_row}
            self.evaluations[row] += len(distinct.keys() - self._counted[row])
            self._counted[row].update(distinct)
            missing = [mask for key, mask in distinct.items() if key not in self._known[row]]
            rows += [row] * len(missing)
            new += missing
        if new:
            self._compute(rows, new)
        return [
            np.array([known[mask.tobytes()] for mask in of_row])
            for known, of_row in zip(self._known, masks, strict=True)
        ]

    def _compute(self, rows: Sequence[int], masks: Sequence[BoolArray]) -> None:
        renderings = render(
            self._model.encoder, self._histories, self.players, rows, masks, self.removal
        )
        states, numbers = self.engine.states(renderings), np.asarray(rows)
        values = self._values(states, renderings, np.arange(len(renderings)), numbers)
        for row, mask, value in zip(rows, masks, values.tolist(), strict=True):
            self._known[row][mask.tobytes()] = value
        sampled, exact = self.engine.exact_states(renderings)
        if sampled:
            places = np.array(sampled)
            exact_values = self._values(exact, renderings, places, numbers[places])
            errors = np.abs(values[places] - exact_values)
            self.bfloat16_error = float(np.nanmax([self.bfloat16_error, *errors]))
            self.engine.note_errors(errors)

    def _values(
        self, states: Tensor, renderings: Renderings, places: IntArray, rows: IntArray
    ) -> FloatArray:
        """(B,) values at (B, H) states of the histories numbered ``rows``.

        Query times and counts are added here, from the renderings numbered ``places`` (B,): states
        do not contain them, so renderings that differ in them alone share a state.
        """
        parts = []
        with inference(self._model):
            for start in range(0, len(states), ROWS):
                part = slice(start, start + ROWS)
                queries = self._queries(states[part], renderings, places[part])
                values = self._target.values(
                    self._model.heads(queries), torch.from_numpy(rows[part])
                )
                parts.append(values.cpu().double())
        return torch.cat(parts).numpy()

    def _queries(self, states: Tensor, read: Renderings, places: IntArray) -> QueryState:
        """(B,) input of the heads, from the (B, H) states of some renderings."""
        model = self._model
        states = states.to(model.device)
        if not model.has_counts:  # no batch is needed
            return model.at_time(QueryState(states), torch.from_numpy(read.encoded.when[places]))
        batch, neutral = read.batch(places)
        own = (neutral == OWN).to(model.device)
        return model.query(batch.to(model.device), states=states, counted=own)

    def restart(self) -> None:
        """Count evaluations from zero; values that are known stay known."""
        self.evaluations = np.zeros_like(self.evaluations)

    def ends(self) -> tuple[FloatArray, FloatArray]:
        """(N,) values without any player, and (N,) values with all of them."""
        both = self([np.stack([np.zeros(n, bool), np.ones(n, bool)]) for n in self.sizes])
        return np.array([v[0] for v in both]), np.array([v[1] for v in both])
