"""From a configuration to a log: a data set by name, or the user's own files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llm_influence.config.data import DataConfig
from llm_influence.data.knowledge_graph import ItemFacts, KnowledgeGraph, enriched
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets.complete_journey import load_complete_journey
from llm_influence.datasets.fraud import make_fraud
from llm_influence.datasets.movielens import load_movielens_100k, load_movielens_graph
from llm_influence.errors import ConfigError, DataError, choices


@dataclass(frozen=True)
class PublicDataset:
    """A public data set that a configuration can name.

    Attributes:
        load: Fetches the set if needed and returns its log.
        describes: Its contents.
        licence: Its terms.
        knowledge: Loads the knowledge graph of its items; None if it has none.
    """

    load: Callable[[], BehaviorLog]
    describes: str
    licence: str
    knowledge: Callable[[], KnowledgeGraph] | None = None


PUBLIC: dict[str, PublicDataset] = {
    "movielens_100k": PublicDataset(
        load_movielens_100k,
        "943 people, 1,682 films, 100,000 ratings with their times (1997-1998)",
        "GroupLens terms of use: research, no redistribution",
        load_movielens_graph,
    ),
    "complete_journey": PublicDataset(
        load_complete_journey,
        "2,469 households of a grocer in 2017: 1.1 million purchases by category, 6,589 campaign "
        "contacts, 2,102 coupon redemptions",
        "CC0",
    ),
    "complete_journey_visits": PublicDataset(
        partial(load_complete_journey, visits=True),
        "the same with one purchase a visit, its main category: 164,000 events",
        "CC0",
    ),
}

SHARED = ("source", "split", "knowledge")
"""Options that also apply to a named set; all others describe the user's own files."""

NAMED: dict[str, Callable[[], BehaviorLog]] = {
    **{name: dataset.load for name, dataset in PUBLIC.items()},
    "planted_fraud": lambda: make_fraud()[0],
}
"""All named logs: the public sets, and a generated one."""


def open_data(config: DataConfig) -> BehaviorLog:
    """Read the configured log, its item texts extended by the knowledge graph if configured.

    Raises:
        DataError: There is no data set or file of that name, or reading fails.
        ConfigError: An option for own files is set with a named data set.
        AssetError: A public data set cannot be fetched.
    """
    log, text = _read(config), config.knowledge.text
    facts = None if text == "none" else open_knowledge(config)
    if facts is None or text == "none":
        return log
    catalogue = enriched(log.catalogue, facts, text, named=config.knowledge.named)
    return replace(log, catalogue=catalogue)


def open_knowledge(config: DataConfig) -> ItemFacts | None:
    """Read the item attributes of the configured knowledge graph; None without a graph.

    Raises:
        DataError: The graph cannot be read, is no graph, or has no such relation.
        AssetError: A public data set cannot be fetched.
    """
    options = config.knowledge
    if options.source is None:
        return None
    public = PUBLIC.get(options.source)
    if public is not None and public.knowledge is not None:
        graph = public.knowledge()
    elif Path(options.source).exists():
        graph = KnowledgeGraph.read(options.source, options.links, options.names)
    else:
        having = [name for name, each in PUBLIC.items() if each.knowledge is not None]
        raise DataError(
            f"{options.source!r} is neither a file nor a public data set with a graph",
            where="data.knowledge.source",
            expected=f"an existing path, or {choices(having, options.source)}",
            fix="check the path, or the name",
        )
    return ItemFacts.of(graph, options.relations)


def _read(config: DataConfig) -> BehaviorLog:
    if config.source in NAMED:
        _refuse_own_options(config)
        return NAMED[config.source]()
    if not Path(config.source).exists():
        raise DataError(
            f"{config.source!r} is neither a file nor a named data set",
            where="data.source",
            expected=f"an existing path, or {choices(NAMED, config.source)}",
            fix="check the path, or the name",
        )
    return BehaviorLog.read(
        config.source,
        config.items,
        config.users,
        columns=config.columns,
        item_text=config.item_text,
        item_title=config.item_title,
        default_behavior=config.default_behavior,
        timezone=config.timezone,
        duplicates=config.duplicates,
    )


def _refuse_own_options(config: DataConfig) -> None:
    options = type(config).model_fields
    given = [
        name
        for name, option in options.items()
        if name not in SHARED and getattr(config, name) != option.default
    ]
    if given:
        raise ConfigError(
            f"data.{given[0]} is set with the data set {config.source!r}",
            where="data",
            expected="no options for columns and tables: a named set has its own",
            fix=f"remove data.{given[0]}, or name your own file as data.source",
        )
