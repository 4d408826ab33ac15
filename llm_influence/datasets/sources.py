"""From a configuration to a log: a public or generated data set by name, or one's own files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llm_influence.config.data import DataConfig
from llm_influence.data.knowledge_graph import ItemFacts, KnowledgeGraph, enriched
from llm_influence.data.log import BehaviorLog
from llm_influence.datasets import fraud as planted_fraud
from llm_influence.datasets.movielens import PUBLIC
from llm_influence.errors import ConfigError, DataError, choices

SHARED = ("source", "split", "knowledge")
"""Options that a named set leaves to the user; all others describe one's own files."""

NAMED: dict[str, Callable[[], BehaviorLog]] = {
    **{name: dataset.read for name, dataset in PUBLIC.items()},
    planted_fraud.SOURCE: planted_fraud.generated_log,
}
"""Every log that a name stands for: public sets, and one that is generated."""


def open_data(config: DataConfig) -> BehaviorLog:
    """Read the log that a configuration names, its items enriched by the graph if it says so.

    Raises:
        DataError: Neither a named data set nor a file has that name, or reading fails.
        ConfigError: Options of one's own files stand beside a named data set.
        AssetError: A public data set cannot be fetched.
    """
    log, wanted = _read(config), config.knowledge
    facts = None if wanted.text == "none" else open_knowledge(config)
    if facts is None or wanted.text == "none":
        return log
    return replace(log, catalogue=enriched(log.catalogue, facts, wanted.text, named=wanted.named))


def open_knowledge(config: DataConfig) -> ItemFacts | None:
    """What the configuration's graph says of items; None where it names no graph.

    Raises:
        DataError: The graph cannot be read, is no graph, or has no such relation.
        AssetError: A public data set cannot be fetched.
    """
    wanted = config.knowledge
    if wanted.source is None:
        return None
    public = PUBLIC.get(wanted.source)
    if public is not None and public.knowledge is not None:
        graph = public.knowledge()
    elif Path(wanted.source).exists():
        graph = KnowledgeGraph.read(wanted.source, wanted.links, wanted.names)
    else:
        having = [name for name, each in PUBLIC.items() if each.knowledge is not None]
        raise DataError(
            f"{wanted.source!r} is neither a file nor a public data set with a graph",
            where="data.knowledge.source",
            expected=f"an existing path, or {choices(having, wanted.source)}",
            fix="check the path, or the name",
        )
    return ItemFacts.of(graph, wanted.relations)


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
            f"data.{given[0]} is set beside the data set {config.source!r}",
            where="data",
            expected="no options about columns and tables: a named set brings its own",
            fix=f"remove data.{given[0]}, or name your own file as data.source",
        )
