"""Behaviour logs: reading, sorting into histories, splitting; see `docs/data.md`."""

from llm_influence.data.assets import asset_path
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.log import BehaviorLog
from llm_influence.data.public import PUBLIC, movielens_100k
from llm_influence.data.readers import read_table
from llm_influence.data.sources import open_data
from llm_influence.data.splits import EvaluationSet, Split, split_log

__all__ = [
    "PUBLIC",
    "BehaviorLog",
    "Catalogue",
    "EvaluationSet",
    "Split",
    "asset_path",
    "movielens_100k",
    "open_data",
    "read_table",
    "split_log",
]
