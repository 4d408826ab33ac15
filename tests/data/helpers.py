"""Small tables that the tests of this folder start from."""

import pyarrow as pa


def table(*rows, names=("user_id", "item_id", "timestamp", "behavior", "value")):
    """A log from rows; as many columns as the rows are wide."""
    columns = list(zip(*rows, strict=True))
    return pa.table(dict(zip(names, map(list, columns), strict=False)))


def events(log):
    """All events of a log as plain tuples, in its order."""
    return [tuple(row.values()) for row in log.to_table().to_pylist()]


TWO_USERS = table(
    ("b", "x", 30, "view", None),
    ("a", "y", 20, "cart", 2.5),
    ("a", "x", 10, "view", None),
    ("b", "z", 30, "view", 1.0),
    ("a", "z", 20, "view", None),
)
