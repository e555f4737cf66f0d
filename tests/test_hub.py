"""A model and a set of pictures travel to the Hub and back: a server of this test stands for it, and nothing leaves the machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from house_rules import ROOT

PUSH = """
import sys
from pathlib import Path
from PIL import Image
from fromage.model.checkpoint import checkpoint_key
from fromage.model.hub import HubModel, push_picture_set
from fromage.model.picture_sets import save_picture_set
own = HubModel.of("data/mini/checkpoint.safetensors", language_model=sys.argv[1])
try:
    own.push_to_hub("someone/own", token="hf_of_the_test")
except ValueError as error:
    print(error)
model = HubModel.of("data/mini/checkpoint.safetensors", "reports/train-mini.json")
print(model.push_to_hub("someone/mini", private=True, token="hf_of_the_test"))
folder = Path(sys.argv[1])
(folder / "pictures").mkdir()
Image.new("RGB", (64, 64), "red").save(folder / "pictures/red.png")
assistant = model.open()
save_picture_set(assistant.index(folder / "pictures", folder / "store"), folder / "pictures", folder / "set")
print(push_picture_set(folder / "set", "someone/pictures", token="hf_of_the_test"))
print(checkpoint_key(model.checkpoint))
"""
PULL = """
import sys
from huggingface_hub import snapshot_download
from fromage.model.checkpoint import checkpoint_key
from fromage.model.hub import HubModel
from fromage.model.picture_sets import load_picture_set
model = HubModel.from_pretrained("someone/mini", token="hf_of_the_test")
assert model.record.run == "train" and model.name == "someone/mini"
index = load_picture_set(snapshot_download("someone/pictures", repo_type="dataset", token="hf_of_the_test"), model.checkpoint)
assistant = model.open()
print(assistant.find(["a red ball"], index, k=1)[0][0])
print(checkpoint_key(model.checkpoint))
"""


class FakeHub(BaseHTTPRequestHandler):
    """As much of the Hub as creating, committing and downloading need; the server holds `files` by kind and name."""
    protocol_version = "HTTP/1.1"

    def answer(self, value: object = None, body: bytes | None = None, status: int = 200, **headers: str) -> None:
        """Sends JSON, or bytes."""
        data = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(data)), "X-Repo-Commit": "0" * 40} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        """Creates a repository, says that every file is small, takes a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, path = self.server, self.path
        server.seen.append(("POST", path, self.headers.get("Authorization")))
        if path == "/api/repos/create":
            asked = json.loads(body)
            server.created.append(asked)
            kind = {"dataset": "datasets/"}.get(asked.get("type"), "")
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            return self.answer({"url": f"{server.address}/{kind}{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in path:
            names = [each["path"] for each in json.loads(body)["files"]]
            return self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        if "/commit/" in path:
            kind, _, rest = path.removeprefix("/api/").partition("/")
            store = server.files.setdefault((kind, rest.partition("/commit/")[0]), {})
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    store[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            place = f"{'' if kind == 'models' else kind + '/'}{rest.partition('/commit/')[0]}"
            return self.answer({"commitUrl": f"{server.address}/{place}/commit/{'0' * 40}", "commitOid": "0" * 40,
                                "success": True})
        return self.answer({"error": "what is this"}, status=404)

    def do_GET(self) -> None:
        """What a repository holds, and its files."""
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path, self.headers.get("Authorization")))
        for (kind, name), store in self.server.files.items():
            if path.startswith(f"/api/{kind}/{name}"):
                siblings = [{"rfilename": each, "size": len(store[each])} for each in store]
                if "/tree/" in path:
                    return self.answer([{"type": "file", "path": each, "size": len(store[each]), "oid": "0" * 40} for each in store])
                return self.answer({"id": name, "sha": "0" * 40, "siblings": siblings, "private": True, "tags": []})
            begin = f"/{'' if kind == 'models' else kind + '/'}{name}/resolve/"
            if path.startswith(begin):
                content = store.get(path.removeprefix(begin).partition("/")[2])
                if content is not None:
                    return self.answer(body=content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
                return self.answer({"error": "no such file"}, status=404, X_Error_Code="EntryNotFound")
        return self.answer({"error": "no such repository"}, status=404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *words: object) -> None:
        """Is silent."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    """A running stand-in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.files, server.created, server.seen = {}, [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def python(hub: ThreadingHTTPServer, folder: Path, code: str) -> list[str]:
    """The last lines that a program prints whose Hub is the stand-in."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0",
                                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def test_a_model_and_pictures_travel_to_the_hub_and_back(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    refused, *_, key = python(hub, tmp_path, PUSH)
    assert "a folder of this machine, which others do not have" in refused
    model, pictures = hub.files["models", "someone/mini"], hub.files["datasets", "someone/pictures"]
    assert set(model) == {"model.safetensors", "config.json", "record.json", "README.md"}
    assert set(pictures) == {"README.md", "metadata.parquet", "images/red.png"}
    private = [asked.get("visibility") == "private" or asked.get("private") for asked in hub.created]
    assert [asked.get("type", "model") for asked in hub.created] == ["model", "dataset"] and all(private)
    assert [asked["name"] for asked in hub.created] == ["mini", "pictures"]  # nothing was made for the refused one
    assert {token for *_, token in hub.seen if token} == {"Bearer hf_of_the_test"}
    card = model["README.md"].decode()
    assert 'HubModel.from_pretrained("someone/mini")' in card and "| text_to_image.R@1 |" in card
    assert str(ROOT) not in card + model["config.json"].decode() + model["record.json"].decode()
    assert str(ROOT).encode() not in model["model.safetensors"]

    fresh = tmp_path / "fresh"
    fresh.mkdir()
    found, same = python(hub, fresh, PULL)[-2:]
    assert found == "red.png" and same == key

