"""Options of the analyses of influence tables, read by Python and by `llm-influence analyze`.

Each field has a ``help``. A field of several values has a ``flag``, the option that adds one.
Bounds are ``min`` and ``max``. The module imports nothing heavy, so the command line stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

Response = Literal["score", "size"]
Estimator = Literal[
    "model",
    "last_touch",
    "first_touch",
    "linear",
    "time_decay",
    "markov",
    "shapley",
    "shapley_rates",
]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

_RESPONSE = {"help": "score, or size: the score without its sign"}
_MATCH = {"help": "column, for example match:genres: which events support the target"}


@dataclass(frozen=True, slots=True)
class Resources:
    """Memory, disk and cores of an analysis."""

    memory: str = field(
        default="2GB", metadata={"help": "memory limit of DuckDB; more rows go to --temp"}
    )
    temp: Path | None = field(
        default=None, metadata={"help": "folder for temporary files; default: the system's"}
    )
    threads: int | None = field(
        default=None, metadata={"help": "threads of DuckDB; default: one per core", "min": 1}
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """Which explanations of the tables are analysed; None takes all."""

    method: str | None = field(
        default=None, metadata={"help": "use explanations of this attribution method only"}
    )
    target: str | None = field(
        default=None,
        metadata={"help": "use this kind of target only: item, contrast, behavior, slate or drawn"},
    )
    run: str | None = field(default=None, metadata={"help": "use explanations of this run only"})


@dataclass(frozen=True, slots=True)
class FactorOptions:
    """Options of `analyze_factors`.

    By default the factors are behavior, gap, recency, session, value, and columns of the item and
    user tables with few distinct values. ``match`` is used for the weights of behaviours alone.
    """

    factors: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "column to analyse, for example gap or user:age; default: usual columns",
            "flag": "--factor",
        },
    )
    response: Response = field(default="score", metadata=_RESPONSE)
    match: str | None = field(default=None, metadata=_MATCH)
    alpha: float = field(
        default=0.05,
        metadata={"help": "false-positive rate over all factors or pairs", "min": 0, "max": 1},
    )
    sample: int = field(
        default=100_000,
        metadata={"help": "approximate events for permutation importance", "min": 1},
    )
    seed: int = field(default=0, metadata={"help": "seed of the sample and the shuffles"})


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Options of `analyze_channels`."""

    channel: str = field(
        metadata={"help": "column whose values are channels, for example item:campaign_type"}
    )
    touches: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "behaviour that is a touch; default: every event with a channel",
            "flag": "--touch",
        },
    )
    outcomes: Path | None = field(
        default=None,
        metadata={"help": "table of outcomes; default: outcomes.parquet beside the tables"},
    )
    conversion: str | None = field(
        default=None, metadata={"help": "behaviour that is a conversion; default: use the label"}
    )
    positive_from: float = field(
        default=1.0, metadata={"help": "smallest label that is a conversion"}
    )
    half_life: float = field(
        default=7.0, metadata={"help": "half-life of time decay, in days", "min": 1e-6}
    )
    estimators: tuple[Estimator, ...] = field(
        default=ESTIMATORS,
        metadata={"help": "way to credit conversions to channels", "flag": "--estimator"},
    )
    resamples: int = field(
        default=200, metadata={"help": "bootstrap resamples of users, for intervals", "min": 1}
    )
    seed: int = field(default=0, metadata={"help": "seed of the resamples"})


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """Options of `analyze_audit`."""

    sensitive: tuple[str, ...] = field(
        metadata={
            "help": "sensitive feature of users, for example user:gender",
            "flag": "--sensitive",
        }
    )
    alpha: float = field(
        default=0.05, metadata={"help": "false-positive rate for a feature without effect"}
    )
    tolerated: float = field(
        default=0.05,
        metadata={"help": "tolerated share of users whose recommendation the feature changes"},
    )
    shuffles: int = field(default=999, metadata={"help": "shuffles of each permutation test"})
    most_users: int = field(
        default=20_000, metadata={"help": "users of the tests; more are sampled down"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the shuffles and of the sampled users"})


@dataclass(frozen=True, slots=True)
class DynamicsOptions:
    """Options of `analyze_dynamics`.

    Families of tests are all decays, all change points, and all levels and all items of a
    comparison.
    """

    by: tuple[str, ...] | None = field(
        default=None,
        metadata={
            "help": "column with a curve per value; default: behavior and item columns",
            "flag": "--by",
        },
    )
    window: str | None = field(
        default=None,
        metadata={"help": "day, week, month or a number of days; default: by the time covered"},
    )
    response: Response = field(default="score", metadata=_RESPONSE)
    match: str | None = field(default=None, metadata=_MATCH)
    alpha: float = field(
        default=0.05,
        metadata={"help": "false-positive rate of each family of tests", "min": 0, "max": 1},
    )
    seed: int = field(default=0, metadata={"help": "seed of the test for change points"})
