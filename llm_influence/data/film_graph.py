"""The Freebase graph of MovieLens-100K's films, its links put right.

RecBole's example data holds a graph of films with links from MovieLens ids to Freebase ids (KB4Rec,
Zhao et al. 2019, arXiv:1807.11141). But the ids of ``ml-100k.link`` are those of MovieLens-**1M**,
which numbers films otherwise: it links item 260 to Star Wars, and item 260 of MovieLens-100K is
Event Horizon (RecSysDatasets, issue 130). Read as it is, the graph is about other films. So a
link's number is looked up in MovieLens-1M's list of films, and its title in MovieLens-100K's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from llm_influence.data.assets import asset_path
from llm_influence.data.knowledge import KnowledgeGraph
from llm_influence.data.readers import read_table

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
