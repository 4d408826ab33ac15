"""Models on the Hugging Face Hub: download by name, upload of a model folder."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from llm_influence.errors import ModelFolderError, OutputError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FAILURES = (HTTPError, OSError, ValueError)


def find_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a model: a local one, or a download from the hub.

    Args:
        source: Local folder, or the name of a repository, "org/name". A local folder comes first.
        revision: Branch, tag or commit of the repository; default: its main branch.

    Raises:
        ModelFolderError: There is no such folder and no such repository, or the hub cannot be
            reached.
    """
    folder = Path(source)
    if folder.exists() or not _REPOSITORY.fullmatch(str(source)):
        return folder
    try:
        return Path(snapshot_download(str(source), revision=revision, library_name="llm_influence"))
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelFolderError(
            f"neither a folder here nor a model that the hub gives ({lines[0]})",
            where=str(source) if revision is None else f"{source}, revision {revision!r}",
            expected="a folder written by save_pretrained, or org/name of a model on the hub",
            fix="check the name and the network; log in with `hf auth login` for a private model",
        ) from error


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Upload a model folder in one commit; the repository and branch are created if needed.

    Returns:
        Address of the commit.

    Raises:
        OutputError: The hub refuses the upload or cannot be reached.
    """
    api = HfApi(library_name="llm_influence")
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except _FAILURES as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OutputError(
            f"the upload failed ({lines[0]})",
            where=repo_id,
            expected="org/name of a repository that you may write to",
            fix="log in with `hf auth login`, and check the name and the network",
        ) from error
    return str(commit.commit_url)
