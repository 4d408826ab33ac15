"""The film graph: titles that mean the same film, and the graph itself where it can be fetched."""

import pytest

from llm_influence.data.knowledge_graph import ItemFacts
from llm_influence.datasets.movielens import (
    UNUSED,
    load_movielens_100k,
    load_movielens_graph,
    same_films,
)


def test_films_are_found_by_title_and_by_a_part_of_it_in_the_same_year():
    theirs = [
        "Star Wars: Episode IV - A New Hope (1977)",
        "Star Wars: Episode V - The Empire Strikes Back (1980)",
        "Promise, The (La Promesse) (1996)",
        "Heat (1995)",
        "Heat (1986)",
        "Batman: One (1990)",
        "Batman: Two (1990)",
    ]
    ours = {
        "50": "Star Wars (1977)",
        "172": "Empire Strikes Back, The (1980)",
        "1": "Promesse, La (1996)",
        "2": "Heat (1995)",
        "3": "Heat (1995)",  # the same film under two ids
        "4": "Star Wars (1978)",  # another year
        "5": "Batman (1990)",  # two could be meant
        "6": "unkonwn (unkonwn)",
    }
    assert same_films(ours, theirs) == {
        "50": theirs[0],
        "172": theirs[1],
        "1": theirs[2],
        "2": theirs[3],
        "3": theirs[3],
    }


def test_unused_numbers_ascend():
    assert list(UNUSED) == sorted(set(UNUSED))


@pytest.mark.e2e
def test_the_graph_is_about_the_films_that_it_is_linked_to():
    graph, films = load_movielens_graph(), load_movielens_100k().catalogue
    assert (len(graph.triples), len(graph.links)) == (91_631, 1_534)
    near = ItemFacts.of(graph).neighbours(films.ids, 3)

    def like(title):
        codes = near.codes[films.titles.index(title)]
        return {films.titles[code] for code in codes}

    assert {"The Empire Strikes Back (1980)", "Return of the Jedi (1983)"} <= like(
        "Star Wars (1977)"
    )
    assert like("Jaws (1975)") & {"Jaws 2 (1978)", "Jaws 3-D (1983)"}
    linked = {row["entity_id"]: row["item_id"] for row in graph.links.to_pylist()}
    assert films.title_of(linked["m.0dtfn"]) == "Star Wars (1977)"
