"""MovieLens-100K, and the Freebase graph of its films with corrected links.

RecBole's example data holds a graph of films with links from MovieLens ids to Freebase ids (KB4Rec,
Zhao et al. 2019, arXiv:1807.11141). But the ids of ``ml-100k.link`` are those of MovieLens-**1M**,
whose film numbers differ: it links item 260 to Star Wars, and item 260 of MovieLens-100K is Event
Horizon (RecSysDatasets, issue 130). Here each number is looked up in the film list of MovieLens-1M,
and the title found there in the films of MovieLens-100K.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.catalogue import Catalogue
from llm_influence.data.knowledge_graph import KnowledgeGraph
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table
from llm_influence.datasets.assets import asset_path

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
    year = pc.if_else(
        pc.match_substring_regex(raw["release_year"], r"^\d{4}$"),
        pc.binary_join_element_wise(" (", raw["release_year"], ")", ""),
        "",
    )
    title = pc.binary_join_element_wise(title, year, "")
    return pa.table({"item_id": raw["item_id"], "title": title, "genres": raw["class"]})


def load_movielens_graph() -> KnowledgeGraph:
    """Load the graph, linked to the items of MovieLens-100K by title and year.

    91,631 triples of 24 relations between 34,628 entities: actors, directors, writers, genres,
    awards, sequels... Entities are Freebase ids; the graph has no names.

    Raises:
        AssetError: The files cannot be fetched.
    """
    folder = asset_path("movielens_100k")
    films = read_table(asset_path("movielens_1m_films"))["item_id"].to_pylist()
    numbers = np.setdiff1d(np.arange(1, len(films) + len(UNUSED) + 1), UNUSED)
    named = {str(number): film for number, film in zip(numbers.tolist(), films, strict=True)}
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
    """Match films: item -> the same film among ``theirs``; items without a match are left out.

    Titles are "Title, The (1980)". Equal titles match. Otherwise two titles of the same year match
    if one is a part of the other ("Star Wars", "Star Wars: Episode IV - A New Hope") and no
    second title fits.

    Args:
        ours: Item -> title.
        theirs: Titles.
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
