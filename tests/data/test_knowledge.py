"""Reading a graph: RecBole's pair of files, tables, and what is wrong with them."""

import pyarrow as pa
import pytest

from llm_influence.data.knowledge_graph import KnowledgeGraph
from llm_influence.errors import DataError, DuplicateError, EmptyLogError, SchemaError
from tests import graph


def test_a_pair_of_files_is_the_graph_in_them(tmp_path):
    found = KnowledgeGraph.read(graph.write(tmp_path))
    assert found.triples.equals(graph.graph().triples)
    assert found.links.equals(graph.graph().links)
    assert found.names == {}


def test_names_are_a_third_table(tmp_path):
    names = pa.table({"entity_id": ["ann", "bob"], "name": ["Ann Lee", "Bob"]})
    found = KnowledgeGraph.read(graph.write(tmp_path), names=names)
    assert found.names == {"ann": "Ann Lee", "bob": "Bob"}


@pytest.mark.parametrize(
    ("file", "text", "error", "message"),
    [
        ("kg", "head_id:token\trel:token\ttail_id:token\na\tb\tc\n", SchemaError, "'relation_id'"),
        ("kg", "head_id\trelation_id\ttail_id\na\tb\tc\n", SchemaError, "header has 'head_id'"),
        (
            "kg",
            "head_id:token\trelation_id:token\ttail_id:token\na\tb\tc\nd\t\tf\n",
            SchemaError,
            r"tiny.kg, row 2, column 'relation_id'",
        ),
        (
            "kg",
            "head_id:token\trelation_id:token\ttail_id:token\na\tb\tc\nd\te\n",
            DataError,
            "tiny.kg: cannot be read.*3 columns, got 2",
        ),
        ("kg", "head_id:token\trelation_id:token\ttail_id:token\n", EmptyLogError, "no rows"),
        (
            "link",
            "item_id:token\tentity_id:token\ni1\te1\ni1\te2\n",
            DuplicateError,
            "rows 1 and 2",
        ),
        ("link", "item_id:token\tentity_id:token\ni1\tx\n", DataError, "none of its 1 entities"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_row(tmp_path, file, text, error, message):
    path = graph.write(tmp_path)
    (tmp_path / f"tiny.{file}").write_text(text)
    with pytest.raises(error, match=message):
        KnowledgeGraph.read(path)


def test_links_are_asked_for_where_they_are_not(tmp_path):
    with pytest.raises(DataError, match=r"tiny.link: no such file"):
        KnowledgeGraph.read(graph.write(tmp_path, links=False))
    with pytest.raises(DataError, match="no links"):
        KnowledgeGraph.read(graph.graph().triples)
