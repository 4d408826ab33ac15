"""Public data sets by name, and the reading of a configured log.

MovieLens-100K comes with the Freebase graph of its films. RecBole's example data links MovieLens
ids to Freebase ids (KB4Rec, Zhao et al. 2019, arXiv:1807.11141). But the ids of ``ml-100k.link``
are those of MovieLens-**1M**, whose film numbers differ: it links item 260 to Star Wars, and item
260 of MovieLens-100K is Event Horizon (RecSysDatasets, issue 130). Here each number is looked up in
the film list of MovieLens-1M, and its title in the films of MovieLens-100K.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.config.data import DataConfig
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import ItemFacts, KnowledgeGraph, enriched
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.datasets.assets import asset_path
from llm_influence.datasets.complete_journey import load_complete_journey
from llm_influence.datasets.fraud import make_fraud
from llm_influence.errors import ConfigError, DataError, choices

ARTICLES = r"The|A|An|La|Le|Les|Il|El|Das|Der|Die|L'"

UNUSED = (
    *(91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195),
    *(1229, 1239, 1338, 1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505),
    *(1506, 1512, 1521, 1530, 1536, 1540, 1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700),
    *(1712, 1736, 1737, 1745, 1751, 1761, 1763, 1766, 1775, 1778, 1786, 1790, 1800, 1802, 1803),
    *(1808, 1813, 1818, 1823, 1828, 1838, 3815),
)
"""Numbers up to 3,952 without a film in MovieLens-1M. The packaged film list is in the order of the
numbers, with titles as ids."""


def load_movielens_100k() -> BehaviorLog:
    """Load MovieLens-100K (Harper and Konstan 2015, doi:10.1145/2827872).

    943 people rated 1,682 films 100,000 times in 1997 and 1998. One behaviour, "rate"; the value
    is the rating, 1 to 5. A film's title is "Star Wars (1977)", its genres follow in its text.
    User features are age, gender and occupation; the zip code is left out.

    Raises:
        AssetError: The files cannot be fetched.
    """
    folder = asset_path("movielens_100k")
    ratings = read_table(folder / "ml-100k.inter").rename_columns({"rating": "value"})
    people = read_table(folder / "ml-100k.user").drop_columns("zip_code")
    return BehaviorLog.read(
        ratings,
        items=Catalogue.from_table(_films(read_table(folder / "ml-100k.item"))),
        users=people,
        default_behavior="rate",
    )


def _films(raw: pa.Table) -> pa.Table:
    """The film table with titles in natural order: the raw one has "Birdcage, The"."""
    title = pc.replace_substring(raw["movie_title"], "unkonwn", "unknown")  # film 267, as it is
    title = pc.replace_substring_regex(title, rf"^(.*), ({ARTICLES})( \(.*\))?$", r"\2 \1\3")
    title = pc.replace_substring(title, "L' ", "L'")
    # Film 267 has no year and film 1412 has its year in the title, "V" beside it.
    is_year = pc.match_substring_regex(raw["release_year"], r"^\d{4}$")
    year = pc.binary_join_element_wise(" (", raw["release_year"], ")", "")
    year = pc.if_else(is_year, year, "")
    title = pc.binary_join_element_wise(title, year, "")
    return pa.table({"item_id": raw["item_id"], "title": title, "genres": raw["class"]})


def load_movielens_graph() -> KnowledgeGraph:
    """Load the graph, linked to the items of MovieLens-100K by title and year.

    91,631 triples of 24 relations between 34,628 entities: actors, directors, writers, genres,
    awards, sequels... Entities are Freebase ids; the graph has no names.
    """
    folder = asset_path("movielens_100k")
    films = read_table(asset_path("movielens_1m_films"))["item_id"].to_pylist()
    numbers = np.setdiff1d(np.arange(1, len(films) + len(UNUSED) + 1), UNUSED)
    named = {str(number): film for number, film in zip(numbers.tolist(), films, strict=True)}
    links = read_table(folder / "ml-100k.link")
    pairs = zip(links["item_id"].to_pylist(), links["entity_id"].to_pylist(), strict=True)
    entity_of = {named[number]: entity for number, entity in pairs}
    items = read_table(folder / "ml-100k.item")
    columns = (items[name].to_pylist() for name in ("item_id", "movie_title", "release_year"))
    ours = {item: f"{title} ({year})" for item, title, year in zip(*columns, strict=True)}
    matched = same_films(ours, entity_of)
    entities = [entity_of[title] for title in matched.values()]
    relinked = pa.table({"item_id": list(matched), "entity_id": entities})
    return KnowledgeGraph.read(folder / "ml-100k.kg", relinked)


def same_films(ours: dict[str, str], theirs: Iterable[str]) -> dict[str, str]:
    """Match films: item -> the same film among ``theirs``; items without a match are left out.

    ``ours`` is item -> title, as "Title, The (1980)". Equal titles match. Otherwise two titles of
    the same year match if one is a part of the other ("Star Wars", "Star Wars: Episode IV - A New
    Hope") and no second title fits.
    """
    exact = set(theirs)
    matched = {item: title for item, title in ours.items() if title in exact}
    left = exact - set(matched.values())
    by_part: dict[tuple[str, str], set[str]] = {}
    for title in left:
        for part in _parts(title):
            by_part.setdefault(part, set()).add(title)
    for item, title in ours.items():
        near = set().union(*(by_part.get(part, set()) for part in _parts(title)))
        if item not in matched and len(near) == 1:
            matched[item] = near.pop()
    return matched


def _parts(title: str) -> set[tuple[str, str]]:
    """(part, year): the whole title, and its parts between colons, dashes and brackets."""
    match = re.fullmatch(r"(.*?) \((\d{4})\).*", title)
    if match is None:
        return set()
    words, year = match.groups()
    pieces = [words, *re.split(r": | - | \(|\)", words)]
    return {(_plain(piece), year) for piece in pieces if len(_plain(piece)) > 3}


def _plain(title: str) -> str:
    """The title in lower case without accents, punctuation and article."""
    text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().casefold()
    text = re.sub(r", \w+'?$|^(the|a|an|la|le|les|das|der|die|il|el) ", "", text.strip())
    return " ".join(re.findall(r"[a-z0-9]+", text))


@dataclass(frozen=True)
class PublicDataset:
    """A public data set that a configuration can name; ``load`` fetches it if needed."""

    load: Callable[[], BehaviorLog]
    describes: str
    licence: str
    knowledge: Callable[[], KnowledgeGraph] | None = None
    """Loads the knowledge graph of its items."""


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

APART = {"split", "knowledge"}
"""Options that do not describe the tables of a log."""
SHARED = {"source", *APART}
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
    """Read the item attributes of the configured knowledge graph; None without a graph."""
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
        found = f"{options.source!r} is neither a file nor a public data set with a graph"
        expected = f"an existing path, or {choices(having, options.source)}"
        fix = "check the path, or the name"
        raise DataError(found, where="data.knowledge.source", expected=expected, fix=fix)
    return ItemFacts.of(graph, options.relations)


def _read(config: DataConfig) -> BehaviorLog:
    if config.source in NAMED:
        _refuse_own_options(config)
        return NAMED[config.source]()
    if not Path(config.source).exists():
        found = f"{config.source!r} is neither a file nor a named data set"
        expected = f"an existing path, or {choices(NAMED, config.source)}"
        fix = "check the path, or the name"
        raise DataError(found, where="data.source", expected=expected, fix=fix)
    options = {name: getattr(config, name) for name in type(config).model_fields}
    return BehaviorLog.read(**{name: options[name] for name in options.keys() - APART})


def _refuse_own_options(config: DataConfig) -> None:
    for name, option in type(config).model_fields.items():
        if name not in SHARED and getattr(config, name) != option.default:
            found = f"data.{name} is set with the data set {config.source!r}"
            expected = "no options for columns and tables: a named set has its own"
            fix = f"remove data.{name}, or name your own file as data.source"
            raise ConfigError(found, where="data", expected=expected, fix=fix)
