"""A small graph about the items of `tiny.small_log`, as RecBole's files have it."""

import pyarrow as pa

from llm_influence.data.knowledge_graph import ItemFacts, KnowledgeGraph

TRIPLES = (
    ("e0", "film.directed_by", "ann"),
    ("e1", "film.directed_by", "ann"),
    ("ann", "director.film", "e1"),  # the same fact from the other side
    ("bob", "actor.film", "e2"),  # a fact that ends at the item
    ("e2", "film.sequel", "e0"),
    *((f"e{n}", "film.country", "land") for n in (0, 1, 3)),
    ("e7", "film.country", "else"),
)


def graph(**options):
    heads, relations, tails = zip(*TRIPLES, strict=True)
    triples = pa.table({"head_id": heads, "relation_id": relations, "tail_id": tails})
    items = [0, 1, 2, 3, 7]
    links = pa.table({"item_id": [f"i{n}" for n in items], "entity_id": [f"e{n}" for n in items]})
    return KnowledgeGraph(triples, links, **options)


def facts(**options):
    return ItemFacts.of(graph(**options))


def write(folder, links=True):
    """The graph as a .kg file with its .link beside it; the path of the first."""
    lines = ["head_id:token\trelation_id:token\ttail_id:token", *map("\t".join, TRIPLES)]
    (folder / "tiny.kg").write_text("\n".join(lines) + "\n")
    if links:
        rows = zip(*graph().links.to_pydict().values(), strict=True)
        lines = ["item_id:token\tentity_id:token", *map("\t".join, rows)]
        (folder / "tiny.link").write_text("\n".join(lines) + "\n")
    return folder / "tiny.kg"
