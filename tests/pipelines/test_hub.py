"""Upload to and download from a local stand-in for the Hub's HTTP interface."""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlparse

import pytest
import torch

from magicvideo.errors import UserError
from magicvideo.pipelines.text_to_video import MagicVideoPipeline

REPOSITORY, COMMIT = "somebody/tiny", "0123456789abcdef0123456789abcdef01234567"
KEYS = {"stages": ("keyframes",), "num_inference_steps": 1, "output_type": "pt"}


class Hub(BaseHTTPRequestHandler):
    """One repository, whose files are in the server's dict."""

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        if path == "/api/repos/create":
            name = json.loads(content)
            assert f"{name.get('organization')}/{name['name']}" == REPOSITORY
            self.server.exists = True
            self._answer({"url": f"http://{self.headers['Host']}/{REPOSITORY}", "id": REPOSITORY})
        elif path.endswith("/preupload/main"):
            files = json.loads(content)["files"]
            modes = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer({"files": modes})
        elif path.endswith("/commit/main"):
            lines = [json.loads(line) for line in content.splitlines()]
            assert lines[0]["key"] == "header"
            self.server.message = lines[0]["value"]["summary"]
            for line in lines[1:]:
                assert line["key"] == "file"
                data = base64.b64decode(line["value"]["content"])
                self.server.files[line["value"]["path"]] = data
            address = f"https://huggingface.co/{REPOSITORY}/commit/{COMMIT}"
            self._answer({"commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})
        else:
            self.send_error(404)

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, *, with_body=True):
        address = urlparse(self.path)
        path, files = unquote(address.path), self.server.files
        if not self.server.exists or REPOSITORY not in path:
            self._answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            if name not in files:
                self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            etag = hashlib.sha256(files[name]).hexdigest()
            self._send(files[name], 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, with_body)
        elif "/tree/" in path:
            assert parse_qs(address.query).get("recursive")
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in files.items()
            ]
            self._answer(entries)
        else:
            siblings = [{"rfilename": name} for name in files]
            self._answer({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _answer(self, value, status=200, headers=None):
        self._send(json.dumps(value).encode(), status, headers or {})

    def _send(self, content, status, headers, with_body=True):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Keep the tests' output clean."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.exists, server.message = {}, False, None
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_is_uploaded_to_the_hub_and_downloaded(pipeline, hub):
    pipeline.push_to_hub(REPOSITORY, commit_message="The tiny one", token="hf_test", private=True)
    assert hub.message == "The tiny one"
    assert {"model_index.json", "SHA256SUMS", "pipeline.py"} <= set(hub.files)
    # what the Hub adds to a repository of its own is no damage
    hub.files[".gitattributes"] = b"*.safetensors filter=lfs\n"
    hub.files["README.md"] = b"# A model\n"
    hub.files["unet/old.bin"] = b"a pickle, which is never downloaded"
    loaded = MagicVideoPipeline.from_pretrained(REPOSITORY, revision="main", token="hf_test")
    assert loaded.model_hash == pipeline.model_hash
    made, expected = (p("a cat", seed=3, **KEYS).frames for p in (loaded, pipeline))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("hub")
def test_a_missing_file_on_the_hub_gives_one_sentence():
    with pytest.raises(UserError, match="Neither a model folder somebody/tiny nor a repository"):
        MagicVideoPipeline.from_pretrained(REPOSITORY)
    with pytest.raises(UserError, match="is not cached and cannot be downloaded"):
        MagicVideoPipeline.from_pretrained("somebody/else", local_files_only=True)


def test_a_damaged_download_is_named(pipeline, hub):
    pipeline.push_to_hub(REPOSITORY, token="hf_test")
    weights = "unet/diffusion_pytorch_model.safetensors"
    hub.files[weights] = hub.files[weights][:-1] + b"?"
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        MagicVideoPipeline.from_pretrained(REPOSITORY)
