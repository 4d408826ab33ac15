"""The Freebase graph of MovieLens-100K's films, its links put right.

RecBole's example data holds a graph of films with links from MovieLens ids to Freebase ids (KB4Rec,
Zhao et al. 2019, arXiv:1807.11141). But the ids of ``ml-100k.link`` are those of MovieLens-**1M**,
which numbers films otherwise: it links item 260 to Star Wars, and item 260 of MovieLens-100K is
Event Horizon (RecSysDatasets, issue 130). Read as it is, the graph is about other films. So a
link's number is looked up in MovieLens-1M's list of films, and its title in MovieLens-100K's.

Public data sets that can be used by name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import KnowledgeGraph
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.datasets.assets import asset_path
from llm_influence.datasets.complete_journey import complete_journey

UNUSED = (
    *(91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195),
    *(1229, 1239, 1338, 1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505),
    *(1506, 1512, 1521, 1530, 1536, 1540, 1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700),
    *(1712, 1736, 1737, 1745, 1751, 1761, 1763, 1766, 1775, 1778, 1786, 1790, 1800, 1802, 1803),
    *(1808, 1813, 1818, 1823, 1828, 1838, 3815),
)
"""Numbers up to 3,952 that MovieLens-1M gives to no film; the packaged list of its films is in
their order, with their titles for ids."""


def movielens_graph() -> KnowledgeGraph:
    """The graph, linked to the items of MovieLens-100K by title and year.

    91,631 triples of 24 relations between 34,628 entities: actors, directors, writers, genres,
    awards, sequels... Entities are Freebase ids; the graph has no names.

    Raises:
        AssetError: The files cannot be fetched.
    """
    folder = asset_path("movielens_100k")
    films = read_table(asset_path("movielens_1m_films"))["item_id"].to_pylist()
    numbers = np.setdiff1d(np.arange(1, len(films) + len(UNUSED) + 1), UNUSED)
    named = {str(n): each for n, each in zip(numbers.tolist(), films, strict=True)}
    links = read_table(folder / "ml-100k.link")
    entity_of = {
        named[number]: entity
        for number, entity in zip(
            links["item_id"].to_pylist(), links["entity_id"].to_pylist(), strict=True
        )
    }
    items = read_table(folder / "ml-100k.item")
    ours = {
        item: f"{title} ({year})"
        for item, title, year in zip(
            *(items[name].to_pylist() for name in ("item_id", "movie_title", "release_year")),
            strict=True,
        )
    }
    matched = same_films(ours, entity_of)
    relinked = pa.table(
        {
            "item_id": pa.array(list(matched)),
            "entity_id": pa.array([entity_of[title] for title in matched.values()]),
        }
    )
    return KnowledgeGraph.read(folder / "ml-100k.kg", relinked)


def same_films(ours: dict[str, str], theirs: Iterable[str]) -> dict[str, str]:
    """Item -> the one of ``theirs`` that is the same film; an item without one is left out.

    Titles are "Title, The (1980)". Those written alike are the same film; else two of the same
    year one of which is a part of the other ("Star Wars", "Star Wars: Episode IV - A New Hope"),
    if there is only one such pair.

    Args:
        ours: Item -> title.
        theirs: Titles.
    """
    theirs = list(theirs)
    exact = set(theirs)
    found = {item: title for item, title in ours.items() if title in exact}
    left = [title for title in theirs if title not in set(found.values())]
    by_part: dict[tuple[str, str], set[str]] = {}
    for title in left:
        for part in _parts(title):
            by_part.setdefault(part, set()).add(title)
    for item, title in ours.items():
        near = set().union(*(by_part.get(part, set()) for part in _parts(title)))
        if item not in found and len(near) == 1:
            found[item] = near.pop()
    return found


def _parts(title: str) -> set[tuple[str, str]]:
    """(part, year): the title's whole and the parts that colons, dashes and brackets make."""
    match = re.fullmatch(r"(.*?) \((\d{4})\).*", title)
    if match is None:
        return set()
    words, year = match.groups()
    pieces = [words, *re.split(r": | - | \(|\)", words)]
    return {(_plain(piece), year) for piece in pieces if len(_plain(piece)) > 3}


def _plain(title: str) -> str:
    """Small letters without accents; the article, which stands behind the comma, left out."""
    text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().casefold()
    text = re.sub(r", \w+'?$|^(the|a|an|la|le|les|das|der|die|il|el) ", "", text.strip())
    return " ".join(re.findall(r"[a-z0-9]+", text))


ARTICLES = r"The|A|An|La|Le|Les|Il|El|Das|Der|Die|L'"


@dataclass(frozen=True)
class PublicDataset:
    """A data set that can be used by name.

    Attributes:
        read: Fetches the set if needed and reads it.
        describes: What is in it.
        licence: Its terms.
        knowledge: Reads the knowledge graph of its items; None where it has none.
    """

    read: Callable[[], BehaviorLog]
    describes: str
    licence: str
    knowledge: Callable[[], KnowledgeGraph] | None = None


def movielens_100k() -> BehaviorLog:
    """MovieLens-100K (Harper and Konstan 2015, doi:10.1145/2827872).

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
    """The film table as people would write it; the raw one says "Birdcage, The"."""
    title = pc.replace_substring(raw["movie_title"], "unkonwn", "unknown")  # film 267, as it is
    title = pc.replace_substring_regex(title, rf"^(.*), ({ARTICLES})( \(.*\))?$", r"\2 \1\3")
    title = pc.replace_substring(title, "L' ", "L'")
    # Film 267 has no year and film 1412 has its year in the title, "V" beside it.
    year = pc.if_else(
        pc.match_substring_regex(raw["release_year"], r"^\d{4}$"),
        pc.binary_join_element_wise(" (", raw["release_year"], ")", ""),
        "",
    )
    title = pc.binary_join_element_wise(title, year, "")
    return pa.table({"item_id": raw["item_id"], "title": title, "genres": raw["class"]})


PUBLIC: dict[str, PublicDataset] = {
    "movielens_100k": PublicDataset(
        movielens_100k,
        "943 people, 1,682 films, 100,000 ratings with their times (1997-1998)",
        "GroupLens terms of use: research, no redistribution",
        movielens_graph,
    ),
    "complete_journey": PublicDataset(
        complete_journey,
        "2,469 households of a grocer in 2017: 1.1 million purchases by category, 6,589 campaign "
        "contacts, 2,102 coupon redemptions",
        "CC0",
    ),
    "complete_journey_visits": PublicDataset(
        partial(complete_journey, visits=True),
        "the same with one purchase a visit, its main category: 164,000 events",
        "CC0",
    ),
}
