"""The hub: a model is found, pushed and refused; a local server stands in for the hub."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from llm_influence.errors import ModelFolderError, OutputError
from llm_influence.modeling import sharing as hub
from llm_influence.modeling.model import InfluenceModel
from llm_influence.modeling.sharing import model_card, wilson
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    tiny.tiny_model("bert", "token").save_pretrained(folder)
    return folder


@pytest.fixture
def server(saved):
    """The parts of the hub's protocol that a download needs, for one repository `shop/model`."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, *, body=True):
            path = self.path.partition("?")[0]
            name = path.partition("/resolve/")[2].partition("/")[2]
            names = sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file())
            if path.startswith("/api/models/shop/model/tree/"):
                entries = [
                    {"type": "file", "path": n, "oid": COMMIT, "size": (saved / n).stat().st_size}
                    for n in names
                ]
                self.answer(200, json.dumps(entries).encode(), {}, body)
            elif path.startswith("/api/models/shop/model"):
                described = {"id": "shop/model", "sha": COMMIT, "siblings": []}
                described["siblings"] = [{"rfilename": name} for name in names]
                self.answer(200, json.dumps(described).encode(), {}, body)
            elif path.startswith("/shop/model/resolve/") and name in names:
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
                self.answer(200, (saved / name).read_bytes(), headers, body)
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def answer(self, status, content, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


PROGRAM = """
import sys
from llm_influence import InfluenceModel
from llm_influence.errors import ModelFolderError
model = InfluenceModel.from_pretrained("shop/model", revision="main")
print(len(model.catalogue))
try:
    InfluenceModel.from_pretrained("shop/other")
except ModelFolderError as error:
    print("refused", error)
"""


def test_a_model_comes_from_the_hub_by_its_name(server, tmp_path):
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    environment = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path), "PATH": "", **quiet}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "30\n" in done.stdout
    assert "refused shop/other: neither a folder here nor a model that the hub gives" in done.stdout


def test_without_a_network_the_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelFolderError, match=r"runs/shop, revision 'v2': neither .*check the name"
    ):
        InfluenceModel.from_pretrained("runs/shop", revision="v2")


def test_a_local_folder_comes_before_the_hub(saved, monkeypatch):
    monkeypatch.chdir(saved.parent.parent)
    assert hub.find_folder(f"{saved.parent.name}/model") == Path(saved.parent.name) / "model"


class FakeHub:
    """Takes what is uploaded."""

    def __init__(self, uploads, **_):
        self.uploads = uploads

    def create_repo(self, repo_id, **options):
        self.uploads.append(("repo", repo_id, options))

    def create_branch(self, repo_id, **options):
        self.uploads.append(("branch", repo_id, options))

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        names = sorted(path.name for path in folder_path.iterdir())
        self.uploads.append(("folder", repo_id, revision, commit_message, names))
        if repo_id == "not/mine":
            raise OSError("403 Forbidden")
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_a_model_is_pushed_whole_with_its_card(monkeypatch):
    uploads = []
    monkeypatch.setattr(hub, "HfApi", lambda **options: FakeHub(uploads, **options))
    model = tiny.tiny_model("bert", "token")
    where = model.push_to_hub("shop/model", private=True, revision="v2", commit_message="Second")
    assert where == "https://hub/shop/model/commit/1"
    (_, _, options), branch, (_, name, revision, message, names) = uploads
    assert options == {"private": True, "exist_ok": True}
    assert branch == ("branch", "shop/model", {"branch": "v2", "exist_ok": True})
    assert (name, revision, message) == ("shop/model", "v2", "Second")
    assert {"README.md", "model.json", "heads.safetensors", "adapter", "backbone"} <= set(names)
    with pytest.raises(OutputError, match=r"not/mine: the upload failed \(403 Forbidden\)"):
        model.push_to_hub("not/mine")


# --- the card ---------------------------------------------------------------------------------


def front_of(card):
    return yaml.safe_load(card.split("---")[1])


def test_a_card_names_metrics_protocol_data_and_limits():
    model = tiny.tiny_model("bert", "token")
    model.protocol = {
        "data": "movielens_100k",
        "split": {"kind": "leave_one_out", "users": 943},
        "test": {"rows": 100, "seen_items": "left out", "cutoff": 10},
        "metrics": {"items": {"hr@10": 0.14, "ndcg@10": 0.07, "coverage@10": None}},
    }
    card = model_card(model.parts)
    front = front_of(card)
    assert front["library_name"] == "llm-influence"
    (result,) = front["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"hr@10": 0.14, "ndcg@10": 0.07}
    assert result["dataset"]["name"] == "movielens_100k"
    low, high = wilson(0.14, 100)
    assert f"| items | hr@10 | 0.1400 | {low:.4f} to {high:.4f} |" in card
    for line in ("- seen items: left out", "- users: 943", "GroupLens terms of use", "not causal"):
        assert line.replace("not causal", "not a causal effect") in card
    assert "| items | coverage@10 | undefined |  |" in card


def test_the_interval_of_a_share_is_the_one_in_the_books():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_a_card_without_metrics_says_so_and_no_file_names_a_place_of_this_machine(saved):
    card = (saved / "README.md").read_text()
    assert "The test split was not measured" in card
    assert "model-index" not in front_of(card)
    backbone = tiny.backbone_folder("bert")
    for path in saved.rglob("*"):
        if path.suffix in {".json", ".md"} and path.name != "model.json":
            assert backbone not in path.read_text(), path
    assert "base_model" not in front_of(card)  # a local folder has no name on the hub


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("minilm", "sentence-transformers/all-MiniLM-L6-v2"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("org/encoder", "org/encoder"),
        ("/models/encoder", None),
    ],
)
def test_the_base_model_is_the_public_name(source, name):
    model = tiny.tiny_model("bert", "token")
    object.__setattr__(model.backbone, "source", source)
    assert front_of(model_card(model.parts)).get("base_model") == name


def test_a_model_pushed_and_loaded_predicts_the_same(saved, log):
    model, loaded = tiny.tiny_model("bert", "token"), InfluenceModel.from_pretrained(saved)
    ours, theirs = (next(m.predict([log.at(0)]))[1].item_logits for m in (model, loaded))
    torch.testing.assert_close(ours, theirs)
