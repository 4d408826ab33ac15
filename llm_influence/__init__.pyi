"""The public names, by room. `__init__.py` reads this file, and so do editors."""

# Data
from .data.catalogue import Catalogue
from .data.knowledge_graph import ItemFacts, KnowledgeGraph
from .data.log import BehaviorLog
from .data.readers import read_table
from .data.splits import EvaluationSet, Split, split_log
from .types import Event, History

# Data sets
from .datasets.complete_journey import load_complete_journey
from .datasets.fraud import make_fraud
from .datasets.planted import make_planted
from .datasets.public import load_movielens_100k, open_data

# Configuration
from .config.analyses import AuditOptions, ChannelOptions, DynamicsOptions, FactorOptions
from .config.data import DataConfig, PlantedConfig, PlantedFraudConfig, SplitConfig
from .config.model import ModelConfig, ScratchConfig
from .config.rules import Rule, load_rules
from .config.run import RunConfig, SearchConfig

# Models
from .modeling.model import Ensemble, InfluenceModel
from .modeling.scoring import Recommendation
from .modeling.build import make_backbone
from .modeling.session import Session
from .rendering.encoder import Encoder
from .rendering.template import Template
from .rendering.vocabulary import Vocabulary

# Training and evaluation
from .evaluation.evaluate import compare_heads
from .evaluation.shift import RemovalShift, removal_shift
from .run import Run
from .training.continual import update
from .training.finetune import finetune
from .training.sweep import search

# Explanations
from .attribution.drawn import Drawn
from .attribution.explainer import Explainer
from .attribution.interactions import AdapterEffect, adapter_effect
from .attribution.renderings import Players
from .attribution.target import Behavior, Contrast, Feedback, Item, Slate
from .influence.memory_fact import MemoryParts
from .influence.influence import Influence, Player, QualityCard
from .influence.matrix import InfluenceMatrix
from .influence.slate_change import SlateChange

# More questions to a model
from .attribution.attacks import Attack, attack
from .attribution.counterfactual import Counterfactual, counterfactual
from .attribution.sufficient import SufficientEvents, sufficient_events
from .attribution.functions import FunctionInfluence, explain_function
from .attribution.interactions import Interactions, interactions
from .attribution.interactions import influence_matrix
from .attribution.memory_parts import memory_parts
from .attribution.slate_changes import slate_changes
from .attribution.training_influence import (
    TrainingGradients,
    TrainingInfluence,
    training_influence,
)

# Attribution methods
from .attribution.methods import (
    METHODS,
    AttentionFlow,
    AttentionGradient,
    AttentionLast,
    AttentionRollout,
    AttentionValueNorm,
    AttentionXGradient,
    CoarseToFine,
    EventPathIntegratedGradients,
    ExactShapley,
    ExpectedGradients,
    InputXGradient,
    IntegratedGradients,
    ItemSimilarity,
    LeaveOneOut,
    PermutationShapley,
    Popularity,
    RandomScores,
    Recency,
    Saliency,
    Shapley,
    SmoothGrad,
    SparseSurrogate,
)

# Batch and reports
from .batch.explain import explain_batch
from .batch.studies import run_fairness_test
from .influence.influence import from_arrow, to_arrow
from .influence.table_files import read_tables, write_table
from .report.page import build_report
from .report.tables import ReportFacts

# Faithfulness
from .batch.studies import measure_faithfulness
from .faithfulness.evaluate import (
    ComparedMethod,
    FaithfulnessOptions,
    compared_method,
    evaluate_faithfulness,
)
from .faithfulness.games import recovery

# Analyses
from .analysis.audit import analyze_audit
from .analysis.channels import analyze_channels
from .analysis.dynamics import analyze_dynamics
from .analysis.factors import analyze_factors
from .analysis.strength import behavior_strengths, shares_of_chosen, strengths_of_memory
from .analysis.review import read_queue, update_queue
from .analysis.tables import InfluenceView

# Errors
from .errors import (
    AssetError,
    ConfigError,
    DataError,
    DuplicateError,
    EmptyLogError,
    ExplanationError,
    InfluenceError,
    MissingFileError,
    ModelError,
    ModelFolderError,
    OutputError,
    SchemaError,
    TemplateError,
    TimestampError,
    UnknownNameError,
)

__version__: str
__all__: list[str]
