"""Models at hand, and models of the Hugging Face Hub, which a server on this machine plays."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.tiny_files import environment

from captioner import Captioner, CheckpointError, ConfigError, list_models
from captioner.api import DEFAULT_WEIGHTS
from captioner.cli import main as cli
from captioner.hub import local_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub of one repository, owner/tiny, at two revisions: main and the tag v1.

    Attributes:
        url: Its address, for HF_ENDPOINT.
        downloaded: Names of the files that were asked for.
    """

    def __init__(self, files):
        self.downloaded = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                _, owner, name, _, revision, *file = self.path.split("/")
                file = "/".join(file)
                if (owner, name) != ("owner", "tiny") or file not in files:
                    return self.reply(404, b"")
                assert revision in ("main", "v1")
                hub.downloaded.append(file)
                self.reply(200, files[file], ETag=f'"{file}"', **{"X-Repo-Commit": COMMIT})

            def do_GET(self):
                if not self.path.startswith("/api/"):
                    return self.do_HEAD()
                if self.path.split("?")[0] not in (
                    "/api/models/owner/tiny/revision/main",
                    "/api/models/owner/tiny/revision/v1",
                ):
                    return self.reply(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
                siblings = [{"rfilename": file} for file in files]
                document = {"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}
                self.reply(200, json.dumps(document).encode())

            def reply(self, status, body, **headers):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def hub(model):
    hub = Hub({"README.md": b"# tiny", "tiny.safetensors": model.read_bytes(), "run.py": b"1 / 0"})
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def run(tmp_path):
    """Run a program of its own, since huggingface-hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub")

    def run(program, url, **settings):
        cache = str(tmp_path / "cache")
        settings = {"HF_ENDPOINT": url, "HF_HUB_CACHE": cache, "HF_TOKEN": "", **settings}
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, capture_output=True, text=True, env={**environment(), **settings}
        )

    return run


INFO = (
    "import sys; from captioner.cli.main import main;"
    "sys.exit(main(['info', 'hf-hub:owner/{}', '--json']))"
)


@pytest.mark.slow
def test_a_model_of_the_hub_captions_like_its_file(hub, run, model, photos):
    program = (
        "from captioner import Captioner;"
        "captioner = Captioner.from_pretrained('hf-hub:owner/tiny@v1', backend='torch');"
        "print(captioner('photos/00.png').text)"
    )
    done = run(program, hub.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Captioner.from_pretrained(model)("photos/00.png").text
    assert set(hub.downloaded) == {"tiny.safetensors"}  # nothing else, above all no programs


def test_info_of_the_hub_and_of_its_cache(hub, run, model):
    done = run(INFO.format("tiny"), hub.url)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert (info["file"].endswith("tiny.safetensors"), info["bytes"]) == (
        True,
        model.stat().st_size,
    )
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):  # told so; nobody answers
        again = run(INFO.format("tiny"), "http://127.0.0.1:9", **offline)
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout) == info


def test_what_cannot_be_had_is_one_line(hub, run):
    wrong = {
        "tiny": ("http://127.0.0.1:9", "hf-hub:owner/tiny is not in the cache, and the hub"),
        "none": (hub.url, "the hub has no hf-hub:owner/none"),
        "a/b": (hub.url, "hf-hub:owner/a/b: a model of the hub is named hf-hub:owner/name"),
    }
    for name, (url, message) in wrong.items():
        done = run(INFO.format(name), url)
        assert done.returncode == 2
        assert done.stderr.startswith(f"captioner: error: {message}"), done.stderr
        assert done.stderr.count("\n") == 1


def test_the_extra_is_named_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'captioner\[hub\]'"):
        local_model("hf-hub:owner/tiny")
    assert cli.main(["info", "hf-hub:owner/tiny"]) == 2
    assert "captioner[hub]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["a.safetensors"], ["a.safetensors"]),
        (["a.bin", "a.onnx.safetensors"], ["a.onnx.safetensors"]),
        (["a.onnx.safetensors", "a.safetensors"], ["a.safetensors", "a.onnx.safetensors"]),
        (["a.safetensors", "model.safetensors"], ["model.safetensors"]),
        (["a.safetensors", "b.safetensors"], "several models"),
        (["a.pt", "folder/a.safetensors"], "no .safetensors"),
    ],
)
def test_the_model_of_a_repository(files, chosen):
    from captioner.hub import _choose

    if isinstance(chosen, list):
        assert _choose("hf-hub:o/n", files) == chosen
    else:
        with pytest.raises(CheckpointError, match=chosen):
            _choose("hf-hub:o/n", files)


def test_models_at_hand(model, tmp_path):
    names = {file.name: file.backend for file in list_models()}
    assert names.get("default", "torch") == "torch"
    assert ("default" in names) == DEFAULT_WEIGHTS.exists()
    assert names["default.onnx"] == "onnx"
    (model.parent / "foreign.safetensors").write_bytes(b"nothing")
    (found,) = list_models(model.parent)
    assert (found.name, found.path, found.size) == ("tiny", model, model.stat().st_size)
    assert list_models(tmp_path) == []


def test_every_command_takes_names_of_the_hub(model, photos, monkeypatch, capsys):
    monkeypatch.setattr("captioner.hub.local_model", {"hf-hub:owner/tiny": model}.__getitem__)
    assert cli.main(["caption", "photos", "-m", "hf-hub:owner/tiny", "-q"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
