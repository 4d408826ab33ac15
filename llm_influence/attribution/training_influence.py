"""Influence of training users on a prediction, by projected gradients.

A user supports a prediction if a training step on the user's history raises it:

    score(user) = -g' (K + d I)^-1 h / U

g is the gradient of the target's value, h that of the user's training loss, U the number of users.
K is the mean of ``h h'`` over the users (Gauss-Newton) and d the damping. Without K this is TracIn
at the last checkpoint (Pruthi et al. 2020, arXiv:2002.08484). The gradients are those of adapter
and heads, projected by a seeded count sketch: every coordinate is added, with a random sign, to one
of ``size`` sums. So inner products are kept without bias (LoGra: Choe et al. 2024,
arXiv:2405.13954; TRAK: Park et al. 2023, arXiv:2303.14186).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from llm_influence.attribution.target import TOP, BoundTarget, Target, bind
from llm_influence.data.log import BehaviorLog
from llm_influence.errors import ExplanationError, OutputError, out_of_range, unreadable
from llm_influence.influence.facts import signed, tidy
from llm_influence.modeling.fingerprints import digest, log_fingerprint, model_fingerprint
from llm_influence.modeling.model import Ensemble, InfluenceModel
from llm_influence.rendering.encoder import collate
from llm_influence.training.batches import Inputs, Window, WindowCollator, WindowDataset
from llm_influence.training.objective import NextEventObjective
from llm_influence.types import FloatArray, History
from llm_influence.utils import write_whole

FILE = "training_gradients.safetensors"
"""Name of the file of gradients in a run folder."""

SIZE = 4096
"""Numbers kept of each user's gradient."""

DAMPING = 0.1
"""Damping in units of the mean squared gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingInfluence:
    """How much each training user supports one prediction.

    Attributes:
        target: Name of the target.
        users: (U,) ids of the training users, in the order of the log.
        scores: (U,) scores; above 0 supports the target. They estimate by how much the target's
            value falls if the model is trained without the user. Order and sign are meaningful;
            the size depends on the damping.
        shared: (U,) titles of the items that a user has in common with the case: with its history
            and the explained item.
    """

    target: str
    users: tuple[str, ...]
    scores: FloatArray
    shared: tuple[tuple[str, ...], ...]

    def top(self, k: int = 5, *, opposed: bool = False) -> list[tuple[str, float]]:
        """Up to k users with the largest support, or opposition, as (user id, score)."""
        sign = -1 if opposed else 1
        order = np.argsort(-sign * self.scores, kind="stable")[:k]
        return [(self.users[i], float(self.scores[i])) for i in order if sign * self.scores[i] > 0]

    def lines(self, k: int = 3) -> list[str]:
        """A line for each of the k users with the largest support: ``share A; B (u7, +0.50)``."""
        places = {user: place for place, user in enumerate(self.users)}
        lines = []
        for user, score in self.top(k):
            titles = self.shared[places[user]]
            names = "; ".join(titles[:3]) + (" …" if len(titles) > 3 else "")
            lines.append(f"share {names or 'no item'} ({tidy(user)}, {signed(score)})")
        return lines

    def to_text(self, k: int = 3) -> str:
        """The k users with the largest support in one sentence; it is plain text, not HTML."""
        lines, name = self.lines(k), tidy(self.target)
        if not lines:
            return f"{name}: no training user supports it"
        return f"{name}: learned from users who {', who '.join(lines)}"

    __str__ = to_text


@dataclass(frozen=True, slots=True, eq=False)
class TrainingGradients:
    """Projected gradients of the training loss of all users.

    Attributes:
        rows: (U, size) float32, in the order of the log's users.
        seed: Seed of the projection.
        fingerprint: Digest of model, log, size and seed.
    """

    rows: Tensor
    seed: int
    fingerprint: str

    @classmethod
    def compute(
        cls,
        model: InfluenceModel,
        log: BehaviorLog,
        *,
        size: int = SIZE,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = False,
    ) -> TrainingGradients:
        """One backward pass for each user; memory does not grow with the history.

        Args:
            model: A trained model.
            log: Its training events.
            size: Numbers kept of each gradient.
            seed: Seed of the projection.
            batch_size: Windows of a user in one pass; affects memory and speed alone.
            progress: Show a bar.

        Raises:
            ExplanationError: An ensemble, or a size below 1.
        """
        fingerprint = _fingerprint(model, log, size, seed)
        with _frozen(model):
            objective = NextEventObjective(model).eval()
            projection = _Projection(model, size, seed)
            collator = WindowCollator(
                log, model.encoder, feedback=model.config.feedback, when=model.config.when
            )
            windows: list[list[Window]] = [[] for _ in range(len(log))]
            from_end = model.config.positions == "end"  # positions differ for every prefix
            for window in WindowDataset(log, model.encoder, prefixes=from_end).windows:
                windows[window.user].append(window)
            rows = torch.zeros(len(log), size)
            for user in tqdm(range(len(log)), desc="users", disable=not progress):
                for start in range(0, len(windows[user]), batch_size):
                    inputs = collator(windows[user][start : start + batch_size])
                    loss = objective(num_items_in_batch=1, **_moved(inputs, model.device))["loss"]
                    rows[user] += projection(loss)
        return cls(rows, seed, fingerprint)

    def save(self, path: Path) -> Path:
        """Write the file, whole or not at all."""
        about = {"seed": str(self.seed), "fingerprint": self.fingerprint}
        return write_whole(path, lambda place: save_file({"rows": self.rows}, place, about))

    @classmethod
    def load(cls, path: Path, model: InfluenceModel, log: BehaviorLog) -> TrainingGradients:
        """Read the gradients of this model on this log.

        Raises:
            OutputError: The file cannot be read, or belongs to another model or log.
        """
        try:
            with safe_open(path, "pt") as file:
                rows, about = file.get_tensor("rows"), file.metadata() or {}
            seed, fingerprint = int(about["seed"]), about["fingerprint"]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise unreadable(
                OutputError,
                path,
                error,
                expected="a file of TrainingGradients.save",
                fix="delete the file and compute the gradients again",
            ) from error
        gradients = cls(rows, seed, fingerprint)
        gradients.check(model, log, where=str(path))
        return gradients

    def check(self, model: InfluenceModel, log: BehaviorLog, where: str = "gradients") -> None:
        """Refuse another model or log.

        Raises:
            OutputError: The gradients are not those of this model on this log.
        """
        if self.fingerprint != _fingerprint(model, log, self.rows.shape[1], self.seed):
            raise OutputError(
                "the gradients belong to another model or log",
                where=where,
                expected="gradients of this model on its training events",
                fix="delete the file and compute the gradients again",
            )

    def scores(self, gradient: Tensor, damping: float | None = DAMPING) -> FloatArray:
        """(U,) scores of the users for the (size,) projected gradient of a target.

        Args:
            gradient: Made by the same projection.
            damping: In units of the mean squared gradient; None: TracIn, without K.
        """
        rows, count = self.rows.double(), len(self.rows)
        products = rows @ gradient.double()
        if damping is None:
            return (-products / count).numpy()
        # (K + d I)^-1 by the U x U or the size x size matrix, whichever is smaller
        small = count <= rows.shape[1]
        matrix = (rows @ rows.T if small else rows.T @ rows) / count
        strength = damping * float(matrix.trace()) / min(matrix.shape[0], count)
        matrix.diagonal().add_(max(strength, 1e-30))
        factor = torch.linalg.cholesky(matrix)
        if small:
            solved = torch.cholesky_solve(products[:, None], factor)[:, 0]
        else:
            solved = rows @ torch.cholesky_solve(gradient.double()[:, None], factor)[:, 0]
        return (-solved / count).numpy()


def training_influence(
    model: InfluenceModel,
    history: History,
    target: Target = TOP,
    *,
    log: BehaviorLog,
    gradients: TrainingGradients | str | Path | None = None,
    damping: float | None = DAMPING,
    seed: int = 0,
    progress: bool = False,
) -> TrainingInfluence:
    """The training users whose histories most support, or oppose, a prediction.

    The gradients of all users are computed once and kept in a file; after that a question costs one
    backward pass. They are those of the loss of the next event, without dropout, augmentation or
    regularisers, over the whole catalogue, at the trained weights.

    The memory of a model is fitted in closed form and has no gradient: the users' part in its
    counts is left out. With a memory the scores are about the language model alone, as it
    completes the memory.

    Args:
        model: A trained model, no ensemble.
        history: History of any user.
        target: What is explained, see `Explainer.explain`; not a slate, which has no gradient.
        log: The training events of the model.
        gradients: `TrainingGradients`, or their file; it is written if it is not there. Default:
            compute them and keep no file.
        damping: In units of the mean squared gradient; None: no preconditioner (TracIn).
        seed: Seed of the projection of new gradients.
        progress: Show a bar while gradients are computed.

    Returns:
        A score for every user of the log.

    Raises:
        ExplanationError: An ensemble, a target without gradient, or a damping not above 0.
        OutputError: The gradients belong to another model or log.
    """
    if damping is not None and not damping > 0:
        raise out_of_range(ExplanationError, "damping", damping, expected="above 0, or None")
    if isinstance(gradients, TrainingGradients):
        gradients.check(model, log)
    else:
        path = None if gradients is None else Path(gradients)
        gradients = stored_gradients(model, log, path, seed=seed, progress=progress)
    bound, size = bind(target, model, [history]), gradients.rows.shape[1]
    gradient = target_gradient(model, history, bound, size=size, seed=gradients.seed)
    item = bound.codes[:1].numpy() if bound.kind != "behavior" else np.empty(0, dtype=np.int64)
    case = np.concatenate([model.encoder.vocabulary.item_codes(history), item])
    return TrainingInfluence(
        target=bound.names[0],
        users=tuple(log.user_ids.to_pylist()),
        scores=gradients.scores(gradient, damping),
        shared=_shared(model, log, case),
    )


def target_gradient(
    model: InfluenceModel, history: History, bound: BoundTarget, *, size: int = SIZE, seed: int = 0
) -> Tensor:
    """(size,) projected gradient of the value of a target that is bound to one history.

    Raises:
        ExplanationError: The target has no gradient.
    """
    if not bound.differentiable:
        raise ExplanationError(
            "a slate has no gradient",
            where="target",
            expected="an item, a behaviour, a contrast or feedback",
            fix="explain the items of the slate one by one",
        )
    with _frozen(model):
        NextEventObjective(model)  # trains the same parameters
        projection = _Projection(model, size, seed)
        batch = collate(model.encoder.encode([model.encoder.trim(history)])).to(model.device)
        prediction = model.heads(model.query(batch))
        return projection(bound.values(prediction, torch.tensor([0])).sum())


class _Projection:
    """Seeded count sketch of the gradient of a number with respect to the trained parameters."""

    def __init__(self, model: InfluenceModel, size: int, seed: int) -> None:
        trained = (pair for pair in sorted(model.named_parameters()) if pair[1].requires_grad)
        self._parameters: list[nn.Parameter] = [parameter for _, parameter in trained]
        count = sum(parameter.numel() for parameter in self._parameters)
        draw = torch.Generator().manual_seed(seed)
        self._size = size
        self._places = torch.randint(size, (count,), generator=draw)
        self._signs = torch.randint(2, (count,), generator=draw).float() * 2 - 1

    def __call__(self, value: Tensor) -> Tensor:
        """(size,) sums, on the CPU in float32."""
        parts = torch.autograd.grad(value, self._parameters, materialize_grads=True)
        flat = torch.cat([part.reshape(-1).float().cpu() for part in parts])
        return torch.zeros(self._size).index_add_(0, self._places, flat * self._signs)


@contextmanager
def _frozen(model: InfluenceModel) -> Iterator[None]:
    """Eval mode inside; mode and trained parameters are as before afterwards."""
    flags, training = [(p, p.requires_grad) for p in model.parameters()], model.training
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def stored_gradients(
    model: InfluenceModel,
    log: BehaviorLog,
    path: Path | None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> TrainingGradients:
    """The gradients in a file. Where there is none they are computed, and written to the path.

    Raises:
        OutputError: The file belongs to another model or log, or cannot be written.
    """
    if path is not None and path.exists():
        return TrainingGradients.load(path, model, log)
    computed = TrainingGradients.compute(model, log, seed=seed, progress=progress)
    if path is not None:
        computed.save(path)
    return computed


def _fingerprint(model: InfluenceModel, log: BehaviorLog, size: int, seed: int) -> str:
    if isinstance(model, Ensemble):
        raise ExplanationError(
            "an ensemble was not trained as one model",
            where="training_influence",
            expected="one model",
            fix="explain the members one by one",
        )
    if size < 1:
        raise out_of_range(ExplanationError, "size", size, expected="at least 1")
    return digest(model_fingerprint(model), log_fingerprint(log), f"{size} {seed}")


def _shared(
    model: InfluenceModel, log: BehaviorLog, case: np.ndarray
) -> tuple[tuple[str, ...], ...]:
    """Titles of the items that each user of the log has in common with (E,) item codes."""
    catalogue, shared = model.catalogue, []
    for history in log:
        common = np.intersect1d(model.encoder.vocabulary.item_codes(history), case)
        codes = [int(code) for code in common if code >= 0]
        shared.append(tuple(tidy(catalogue.titles[c] or catalogue.ids[c].as_py()) for c in codes))
    return tuple(shared)


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on a device."""
    return {
        name: _moved(column, device) if isinstance(column, dict) else column.to(device)
        for name, column in inputs.items()
    }
