"""Which of the things a user did made the model predict what they will do next, and how much?

    from llm_influence import BehaviorLog, Explainer, InfluenceModel

    log = BehaviorLog.read("events.parquet", items="items.parquet")
    model = InfluenceModel.from_pretrained("runs/movielens_100k")
    print(Explainer(model).explain(log["196"]).to_text())

The rooms, each importing only those before it: `types`, `errors`, `config`, `data`, `rendering`,
`rules`, `influence`, `modeling`, `evaluation`, `training` and `attribution`, `faithfulness`,
`jobs`, `report`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_influence.attribution.explainer import Explainer as Explainer
    from llm_influence.attribution.target import Behavior as Behavior
    from llm_influence.attribution.target import Contrast as Contrast
    from llm_influence.attribution.target import Feedback as Feedback
    from llm_influence.attribution.target import Item as Item
    from llm_influence.attribution.target import Slate as Slate
    from llm_influence.batch.explain import explain_batch as explain_batch
    from llm_influence.config.run import RunConfig as RunConfig
    from llm_influence.data.catalogue import Catalogue as Catalogue
    from llm_influence.data.log import BehaviorLog as BehaviorLog
    from llm_influence.errors import InfluenceError as InfluenceError
    from llm_influence.influence.influence import Influence as Influence
    from llm_influence.modeling.model import InfluenceModel as InfluenceModel
    from llm_influence.report.page import build_report as build_report
    from llm_influence.training.finetune import finetune as finetune
    from llm_influence.types import Event as Event
    from llm_influence.types import History as History

_HOMES = {
    "Behavior": "attribution.target",
    "BehaviorLog": "data.log",
    "Catalogue": "data.catalogue",
    "Contrast": "attribution.target",
    "Event": "types",
    "Explainer": "attribution.explainer",
    "Feedback": "attribution.target",
    "History": "types",
    "Influence": "influence.influence",
    "InfluenceError": "errors",
    "InfluenceModel": "modeling.model",
    "Item": "attribution.target",
    "RunConfig": "config.run",
    "Slate": "attribution.target",
    "build_report": "report.page",
    "explain_batch": "batch.explain",
    "finetune": "training.finetune",
}

__version__ = "0.1.0"
__all__ = [
    "Behavior",
    "BehaviorLog",
    "Catalogue",
    "Contrast",
    "Event",
    "Explainer",
    "Feedback",
    "History",
    "Influence",
    "InfluenceError",
    "InfluenceModel",
    "Item",
    "RunConfig",
    "Slate",
    "build_report",
    "explain_batch",
    "finetune",
]


def __getattr__(name: str) -> object:
    """Import a public name from its home when it is first asked for: `import` alone is instant."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
