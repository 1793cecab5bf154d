"""A running demo, spoken to by a program that means ill."""

import errno
import io
import json
import secrets
import socket
import sys
import time
from pathlib import Path

import pytest
from helpers.damaged import png_header
from helpers.tiny_files import make_photos
from PIL import Image

pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx
from gradio import processing_utils, route_utils
from gradio.utils import get_upload_folder

from captioner.demo import security
from captioner.demo.app import serve
from captioner.demo.models import Models
from captioner.demo.security import disk_usage

MARK = {"_type": "gradio.FileData"}
PART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(999)
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
        given = self.event["inputs"][2:]  # after photo and state
        self.settings = [values[number] for number in given]

    def upload(self, content, name="photo.png"):
        return self.client.post("gradio_api/upload", files={"files": (name, content)})

    def caption(self, photo, settings=None):
        """What the page would show for this payload, or the error."""
        data = [photo, None, *(self.settings if settings is None else settings)]
        visitor = secrets.token_hex(8)  # a new one each time, whose page is empty
        join = {"data": data, "fn_index": self.event["id"], "session_hash": visitor}
        headers = {"Content-Type": "application/json"}
        text = json.dumps(join)  # httpx itself refuses NaN
        answer = self.client.post("gradio_api/queue/join", content=text, headers=headers)
        assert answer.status_code == 200, answer.text
        where = {"session_hash": visitor}
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
        (b"<svg onload=alert(1)>" * 20, "an SVG drawing"),
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
    ("place", "value", "named"),
    [
        *((1, "<script>", "Overlay"), (2, 50, "Strength"), (2, None, "Strength")),
        *((3, "Everything", "Search"), (3, ["Sampling"], "Search"), (4, 10_000, "Sentences")),
        *((5, float("nan"), "Beams"), (5, True, "Beams"), (6, "nan", "Length penalty")),
        *((7, {}, "Temperature"), (8, -1, "Top p"), (9, 1e400, "Seed"), (10, 7, "Required words")),
        (0, "../model", "Model"),
    ],
)
def test_an_impossible_setting_is_named_and_leaves_no_traceback(demo, capfd, place, value, named):
    (path,) = demo.upload(picture()).json()
    settings = [*demo.settings]
    settings[place] = value
    assert named in demo.caption({"path": path, "meta": MARK}, settings)["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("photo", ["/etc/passwd", 7, [], {"path": 3, "meta": MARK}, {"meta": MARK}])
def test_what_is_no_file_leaves_no_traceback(demo, capfd, photo):
    assert "sentences" not in demo.caption(photo)
    assert "sentences" not in demo.caption(photo, demo.settings[:3])
    assert "Traceback" not in "".join(capfd.readouterr())


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


def test_a_silent_connection_takes_no_room(demo, monkeypatch):
    """It promises more than there is room for, and sends nothing."""
    monkeypatch.setattr(security, "MAX_DISK_BYTES", disk_usage(get_upload_folder()) + 1_000_000)
    with raw_upload(demo, 400 << 20, b""):
        assert demo.upload(picture()).status_code == 200


def test_a_body_that_stalls_is_given_up_and_its_file_removed(demo, monkeypatch):
    monkeypatch.setattr(security, "STALL_SECONDS", 0.2)
    with raw_upload(demo, 10_000, PART) as connection:
        assert b" 408 " in connection.recv(100)
    assert half_uploads() == []


def test_an_upload_that_breaks_off_is_removed(demo):
    with raw_upload(demo, 10_000, PART):
        until(lambda: half_uploads() != [])
    until(lambda: half_uploads() == [])


def raw_upload(demo, promised, sent):
    """Open a connection that promises a body and sends this much of it."""
    where = demo.client.base_url
    connection = socket.create_connection((where.host, where.port), timeout=30)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {where.host}\r\nContent-Length: {promised}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    connection.sendall(head.encode() + sent)
    return connection


def half_uploads():
    return [path for path in Path(get_upload_folder()).iterdir() if path.is_file()]


def until(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never happened")


def test_a_full_disk_is_one_line(demo, monkeypatch, capfd):
    async def write(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(route_utils.GradioUploadFile, "write", write)
    refused = demo.upload(picture())
    assert (refused.status_code, "No room" in refused.text) == (507, True)
    assert half_uploads() == []
    monkeypatch.undo()

    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(processing_utils, "save_base64_to_cache", save)
    monkeypatch.setattr("captioner.demo.session.read_file", save)
    (path,) = demo.upload(picture()).json()
    assert "No room" in demo.caption({"path": path, "meta": MARK})["error"]
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://{here}"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "192.168.1.7:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
def test_other_sites_can_send_nothing(demo, headers, status):
    here = demo.client.base_url.netloc.decode()
    headers = {name: value.format(here=here) for name, value in headers.items()}
    files = {"files": ("photo.png", picture())}
    answer = demo.client.post("gradio_api/upload", files=files, headers=headers)
    assert answer.status_code == status
    assert demo.client.get("config", headers=headers).status_code == status


def test_a_proxy_serves_the_page_by_its_own_name(model):
    models = Models.from_files([str(model)])
    blocks, address = serve(models, examples=[], root_path="https://example.com/captioner")
    try:
        named = {"Host": "example.com", "Origin": "https://example.com"}
        config = httpx.get(f"{address}config", headers=named)
        assert config.json()["root"] == "https://example.com/captioner"
        inner = {"Origin": "https://example.com"}  # the proxy asks by its own name for this machine
        assert httpx.get(f"{address}config", headers=inner).status_code == 200
        assert httpx.get(f"{address}config", headers={"Host": "x.example"}).status_code == 403
    finally:
        blocks.close()


def test_a_name_and_password_can_be_asked_for(model):
    blocks, address = serve(Models.from_files([str(model)]), examples=[], auth=("me", "secret"))
    try:
        assert httpx.get(f"{address}config").status_code == 401
        with httpx.Client(base_url=address) as client:
            wrong = client.post("login", data={"username": "me", "password": "wrong"})
            assert wrong.status_code == 400
            right = client.post("login", data={"username": "me", "password": "secret"})
            assert right.status_code == 200
            assert client.get("config").status_code == 200
    finally:
        blocks.close()


@pytest.mark.parametrize("path", ["", "config", "evil/../../x"])
def test_browsers_are_told_to_be_careful(demo, path):
    headers = demo.client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert "object-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'self'" in headers["content-security-policy"]


def test_no_request_has_left_the_machine(demo):
    """Last: of everything above, the start of the server included."""
    strangers = {
        name for name in REACHED if name not in ("127.0.0.1", "localhost", "::1", "0.0.0.0")
    }
    assert not strangers
