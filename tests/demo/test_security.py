"""A running demo, spoken to by a program that means ill."""

import io
import json
import os
import sys

import pytest
from helpers.damaged import png_header
from helpers.tiny_files import make_photos
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx
from gradio.utils import get_upload_folder

from captioner.demo import security
from captioner.demo.app import serve
from captioner.demo.models import Models
from captioner.demo.security import disk_usage

MARK = {"_type": "gradio.FileData"}
REACHED: list[str] | None = None  # addresses that this process has tried to reach


def _listen(event, arguments):
    if REACHED is None:
        return
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        REACHED.append(str(arguments[1][0]))
    if event == "socket.getaddrinfo":
        REACHED.append(str(arguments[0]))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A photo of this machine that nobody has uploaded."""
    folder = tmp_path_factory.mktemp("outside") / "photos"
    make_photos(folder, 2)
    return folder / "00.png"


@pytest.fixture(scope="module")
def demo(model, outside):
    global REACHED
    sys.addaudithook(_listen)  # for good: there is no way to take one back
    REACHED = []
    example = str(outside.with_name("01.png"))
    blocks, address = serve(Models.from_files([str(model)]), examples=[example])
    with httpx.Client(base_url=address, timeout=30) as client:
        yield Visitor(client)
    blocks.close()
    REACHED = None


class Visitor:
    """Speaks HTTP with the demo, past the page."""

    def __init__(self, client):
        self.client = client
        config = client.get("config").json()
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        ids = {each["props"].get("elem_id"): each["id"] for each in config["components"]}
        (self.event,) = (
            each for each in config["dependencies"] if each["targets"] == [[ids["photo"], "change"]]
        )
        self.settings = [values[number] for number in self.event["inputs"][1:]]

    def upload(self, content, name="photo.png"):
        return self.client.post("gradio_api/upload", files={"files": (name, content)})

    def caption(self, photo, settings=None):
        """What the page would show for this payload, or the error."""
        data = [photo, *(self.settings if settings is None else settings)]
        join = {"data": data, "fn_index": self.event["id"], "session_hash": "visitor"}
        answer = self.client.post("gradio_api/queue/join", json=join)
        assert answer.status_code == 200, answer.text
        where = {"session_hash": "visitor"}
        with self.client.stream("GET", "gradio_api/queue/data", params=where) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    return message["output"]["data"][0] if message["success"] else message["output"]
        raise AssertionError("no answer")


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_an_upload_is_captioned(demo):
    (path,) = demo.upload(picture()).json()
    assert demo.caption({"path": path, "meta": MARK})["sentences"]


@pytest.mark.parametrize("mark", [{"meta": MARK}, {}, {"meta": MARK, "url": "http://x/y.png"}])
def test_no_photo_of_the_machine_is_read(demo, outside, mark):
    """Neither one that the client declares as a file nor one that it does not."""
    for path in (str(outside), "/proc/self/environ", "/etc/passwd"):
        assert "sentences" not in demo.caption({"path": path, **mark})


def test_no_path_leads_out_of_the_uploads(demo, outside):
    (path,) = demo.upload(picture()).json()
    winding = f"{path}/../../../..{outside}"
    for mark in ({"meta": MARK}, {}):
        assert "sentences" not in demo.caption({"path": winding, **mark})


def test_no_address_is_fetched(demo):
    for address in ("http://example.com/a.jpg", "https://192.0.2.1/a.jpg", "file:///etc/passwd"):
        for photo in (
            {"path": address, "meta": MARK},
            {"path": address},
            {"path": "a.jpg", "url": address, "meta": MARK},
        ):
            assert "sentences" not in demo.caption(photo)


@pytest.mark.parametrize(
    "path",
    [
        *("gradio_api/file=/etc/passwd", "gradio_api/file=pyproject.toml"),
        *("gradio_api/file=../../../../etc/passwd", "static/../../../../../etc/passwd"),
        *("gradio_api/proxy=http://example.com/", "monitoring", "gradio_api/runs", "docs"),
    ],
)
def test_nothing_else_is_served(demo, path):
    answer = demo.client.get(path)
    assert answer.status_code in (400, 403, 404)
    assert "root:" not in answer.text


def test_the_photo_on_show_is_served_but_not_its_neighbour(demo, outside):
    assert demo.client.get(f"gradio_api/file={outside}").status_code == 403


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png_header(50_000, 50_000), "over the limit"),
        (b"<svg onload=alert(1)>" * 20, "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
    ],
)
def test_bombs_and_non_images_get_a_message(demo, content, said):
    (path,) = demo.upload(content).json()
    error = demo.caption({"path": path, "meta": MARK})["error"]
    assert said in error
    assert path not in error


def test_an_upload_has_a_limit(demo, monkeypatch):
    (path,) = demo.upload(bytes(21 << 20)).json()
    assert "larger than 20 MB" in demo.caption({"path": path, "meta": MARK})["error"]
    monkeypatch.setattr(security, "MAX_UPLOAD_BYTES", 1 << 20)
    assert demo.upload(bytes(2 << 20)).status_code == 413


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((0, "/etc/passwd"), (0, "../model"), (1, "<script>"), (2, 50)),
        *((3, "Everything"), (4, 10_000), (5, 10_000), (6, "nan"), (8, -1)),
    ],
)
def test_settings_outside_of_the_page_are_refused(demo, place, value):
    (path,) = demo.upload(picture()).json()
    settings = [*demo.settings]
    settings[place] = value
    assert "sentences" not in demo.caption({"path": path, "meta": MARK}, settings)


def test_a_malicious_file_name_reaches_nobody(demo):
    (path,) = demo.upload(picture(), "<img src=x onerror=alert(1)>.png").json()
    assert "<" not in path
    assert "onerror" not in json.dumps(demo.caption({"path": path, "meta": MARK}))


def test_the_disk_cannot_be_filled(demo, monkeypatch):
    monkeypatch.setattr(security, "MAX_DISK_BYTES", disk_usage(get_upload_folder()) + 100_000)
    assert demo.upload(picture()).status_code == 200
    refused = demo.upload(bytes(200_000))
    assert refused.status_code == 507
    assert "come back" in refused.text


def test_what_broken_uploads_leave_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(security, "CACHE_SECONDS", (600, 3600))
    kept = [tmp_path / "fresh", tmp_path / "upload" / "photo.png"]
    kept[1].parent.mkdir()
    for path in (*kept, tmp_path / "left"):
        path.write_bytes(bytes(10_000))
    for path in (kept[1], tmp_path / "left"):  # Gradio itself deletes whole uploads
        os.utime(path, (0, 0))
    assert disk_usage(str(tmp_path)) == 20_000
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


@pytest.mark.parametrize("path", ["process_recording", "component_server", "vibe-edit"])
def test_what_the_page_does_not_need_is_closed(demo, path):
    """Among these one that leaves files for good."""
    files = {"video": ("film.mp4", b"film")}
    assert demo.client.post(f"gradio_api/{path}", files=files).status_code == 404


@pytest.mark.parametrize("path", ["run", "api"])
def test_no_model_is_run_past_the_queue(demo, path):
    (photo,) = demo.upload(picture()).json()
    call = {"data": [{"path": photo, "meta": MARK}, "", 1, 3, False]}
    assert demo.client.post(f"gradio_api/{path}/caption", json=call).status_code == 404


def test_a_request_has_a_limit(demo, monkeypatch):
    monkeypatch.setattr(security, "MAX_MESSAGE_BYTES", 1000)
    join = "gradio_api/queue/join"
    assert demo.client.post(join, content=bytes(1001)).status_code == 413
    assert demo.client.post(join, content=iter([b"{}"])).status_code == 411  # of unknown length
    assert demo.client.post(join, content=b"{}").status_code == 422  # Gradio's own


def test_no_request_has_left_the_machine(demo):
    """Last: of everything above, the start of the server included."""
    strangers = {
        name for name in REACHED if name not in ("127.0.0.1", "localhost", "::1", "0.0.0.0")
    }
    assert not strangers
