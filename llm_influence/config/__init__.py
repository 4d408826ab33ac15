"""The run configuration: one pydantic model for the YAML file, Python and the command line.

`RunConfig` is all a fine-tuning run needs, and it is saved inside the model folder. Unknown keys
are refused with the nearest valid one named. `RunConfig.load("run.yaml", ["--train.epochs", "4"])`
reads a file and puts dotted command-line overrides on top of it.

document   what every configuration is: sections that refuse unknown keys, and YAML files of them
data       where the log lies, how it is cut, and how histories become tokens
adapters   what is trained inside the backbone
knowledge  a knowledge graph, and what is made of it
heads      what is predicted, and by which loss
model      the backbone with its adapter and heads; backbones made from nothing
training   fine-tuning, and what may come before or after it
planted    a log made by a known law
fraud      a generated log of accounts, some taken over
rules      what may be recommended to whom, and what is preferred
run        everything one fine-tuning run needs
search     a search for good options of a run
"""

from llm_influence.config.adapters import ADAPTER_OPTIONS, AdapterConfig
from llm_influence.config.data import DataConfig, RenderingConfig, SplitConfig
from llm_influence.config.document import Document, Section, set_option
from llm_influence.config.fraud import PlantedFraudConfig
from llm_influence.config.heads import (
    LARGE_CATALOGUE,
    BehaviorHeadConfig,
    FeedbackHeadConfig,
    ItemHeadConfig,
)
from llm_influence.config.knowledge import KnowledgeConfig, NeighborsConfig
from llm_influence.config.model import RECURRENT, ModelConfig, RecurrentConfig, ScratchConfig
from llm_influence.config.planted import DriftConfig, PlantedConfig
from llm_influence.config.rules import Rule, load_rules, read_rules
from llm_influence.config.run import RunConfig
from llm_influence.config.search import PrunerConfig, SearchConfig, SearchedOption
from llm_influence.config.training import (
    AdversarialConfig,
    AugmentationConfig,
    Choice,
    ContrastiveConfig,
    EvaluationConfig,
    FairnessConfig,
    PretrainingConfig,
    PropensityConfig,
    PseudoLabelsConfig,
    TrainConfig,
    UpdateConfig,
)

__all__ = [
    "ADAPTER_OPTIONS",
    "LARGE_CATALOGUE",
    "RECURRENT",
    "AdapterConfig",
    "AdversarialConfig",
    "AugmentationConfig",
    "BehaviorHeadConfig",
    "Choice",
    "ContrastiveConfig",
    "DataConfig",
    "Document",
    "DriftConfig",
    "EvaluationConfig",
    "FairnessConfig",
    "FeedbackHeadConfig",
    "ItemHeadConfig",
    "KnowledgeConfig",
    "ModelConfig",
    "NeighborsConfig",
    "PlantedConfig",
    "PlantedFraudConfig",
    "PretrainingConfig",
    "PropensityConfig",
    "PrunerConfig",
    "PseudoLabelsConfig",
    "RecurrentConfig",
    "RenderingConfig",
    "Rule",
    "RunConfig",
    "ScratchConfig",
    "SearchConfig",
    "SearchedOption",
    "Section",
    "SplitConfig",
    "TrainConfig",
    "UpdateConfig",
    "load_rules",
    "read_rules",
    "set_option",
]
