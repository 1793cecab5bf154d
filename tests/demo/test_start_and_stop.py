"""The command `captioner demo` from its first line to its end."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.damaged import make_zip
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx

from captioner.cli import main as cli
from captioner.demo import app

MARK = {"_type": "gradio.FileData"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "80000"], "--port must be from 1 to 65535, not 80000"),
        (["--port", "0"], "--port must be from 1 to 65535, not 0"),
        (["--host", "203.0.113.7"], "cannot listen on --host 203.0.113.7"),
        (["--host", "no-such-host.invalid"], "cannot listen on --host no-such-host.invalid"),
        (["--host", "a" * 300], "cannot listen on --host aaa"),
        (["--auth", "me"], "--auth takes a name and a password"),
        (["--queue", "0"], "--queue must be at least 1"),
        (["-m", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_what_cannot_work_is_told_in_a_line_before_models_load(monkeypatch, capsys, options, said):
    monkeypatch.setattr(app, "serve", lambda *_, **__: pytest.fail("too late"))
    assert cli.main(["demo", *options]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said in message


def test_a_port_in_use_is_told(monkeypatch, capsys):
    monkeypatch.setattr(app, "serve", lambda *_, **__: pytest.fail("too late"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 is in use: choose another" in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "warned"), [([], True), (["--auth", "me:secret"], False)])
def test_a_page_open_to_all_is_warned_about(monkeypatch, capsys, extra, warned):
    monkeypatch.setattr(app, "serve", lambda *_, **__: ("page", "http://0.0.0.0:7860/"))
    monkeypatch.setattr(app, "wait", lambda *_: None)
    assert cli.main(["demo", "--host", "0.0.0.0", *extra]) == 0
    assert ("--auth" in capsys.readouterr().err) == warned


@pytest.mark.slow
def test_no_place_for_files_is_one_line(tmp_path, model):
    script = "import sys; from captioner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "demo", "-m", str(model)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "missing")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "cannot write to" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_batch_ends_all_cleanly(tmp_path, model, number):
    (tmp_path / "files").mkdir()
    make_photos(tmp_path / "photos", 1)
    photo = (tmp_path / "photos" / "00.png").read_bytes()
    archive = make_zip(tmp_path / "a.zip", {f"{index}.png": photo for index in range(200)})
    command = [sys.executable, "-m", "captioner", "demo", "-m", str(model)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "files")}
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        ) as server,
    ):
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            with httpx.Client(base_url=address, timeout=120) as client:
                files = {"files": ("a.zip", Path(archive).read_bytes())}
                (path,) = client.post("gradio_api/upload", files=files).json()
                data = [[{"path": path, "orig_name": "a.zip", "meta": MARK}], "", 8, 10]
                call = client.post("gradio_api/call/caption_batch", json={"data": data})
                assert call.status_code == 200
            server.send_signal(number)
            assert server.wait(60) in (0, 130)
        finally:
            server.kill()
    assert "terminate" not in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert list((tmp_path / "files").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"files", "photos", "a.zip", "log"}
