"""Files that are written whole or not at all."""

import errno

import pytest

from llm_influence.errors import AssetError, OutputError
from llm_influence.utils import write_text, write_whole


def test_a_file_is_replaced_whole_in_folders_made_for_it(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "zweite Fassung: 第二"):
        assert write_text(path, text) == path
        assert path.read_text(encoding="utf-8") == text
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (AssetError("not the pinned one", where="a", expected="b", fix="c"), AssetError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_error_leaves_the_old_file_and_is_wrapped_once(tmp_path, error, raised):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def half(part):
        part.write_text("ha")
        raise error

    with pytest.raises(raised) as caught:
        write_whole(path, half)
    assert caught.value is error or caught.value.__cause__ is error
    assert (type(caught.value) is type(error)) == (raised is type(error))
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
