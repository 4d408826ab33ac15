"""Public data sets that can be used by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from llm_influence.data.assets import asset_path
from llm_influence.data.catalogue import Catalogue
from llm_influence.data.complete_journey import complete_journey
from llm_influence.data.film_graph import movielens_graph
from llm_influence.data.knowledge import KnowledgeGraph
from llm_influence.data.log import BehaviorLog
from llm_influence.data.readers import read_table

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
