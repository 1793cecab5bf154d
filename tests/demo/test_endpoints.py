"""The demo's endpoints, called over the network by the client that programs use."""

import base64
import sys
import zipfile
from importlib.util import find_spec

import pytest
from helpers.tiny_files import make_photos

pytest.importorskip("gradio", reason="the extra demo is not installed")

import httpx
from gradio_client import Client, exceptions, handle_file

from captioner.api import Captioner
from captioner.cli import main as cli
from captioner.demo.app import serve
from captioner.demo.models import Models

MARK = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three photos, a zip of the first two, and a file that is none."""
    folder = tmp_path_factory.mktemp("endpoints") / "photos"
    make_photos(folder, 3)
    with zipfile.ZipFile(folder / "two.zip", "w") as archive:
        for name in ("00.png", "01.png"):
            archive.write(folder / name, name)
    (folder / "broken.jpg").write_bytes(b"nonsense")
    return folder


@pytest.fixture(scope="module")
def captioner(model):
    return Captioner.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def client(captioner):
    blocks, address = serve(Models.of({"tiny": captioner, "other": captioner}), examples=[])
    client = Client(address, verbose=False)
    yield client
    client.close()
    blocks.close()


def file(folder, name="00.png"):
    return handle_file(folder / name)


def test_a_photo_gets_the_caption_that_the_library_gives(client, captioner, folder):
    expected = captioner(str(folder / "00.png"), beam=3).to_dict()
    found = client.predict(file(folder), api_name="/caption")
    assert found["caption"] == expected["caption"]
    assert found["score"] == pytest.approx(expected["score"], abs=1e-3)
    assert set(found) == set(expected)


def test_several_captions_and_their_maps(client, folder):
    found = client.predict(
        file(folder), captions=3, beam=2, attention=True, model="other", api_name="/caption"
    )
    assert len(found["candidates"]) == 3
    assert len(found["attention"]) == len(found["words"])
    for cells in found["attention"]:
        assert sum(map(sum, cells)) == pytest.approx(1, abs=1e-3)


def test_another_word_continues_the_sentence(client, folder):
    found = client.predict(file(folder), alternatives=3, beam=1, api_name="/complete")
    assert len(found["alternatives"]) >= len(found["words"])
    best, second = found["alternatives"][0][:2]
    assert best["word"] == found["words"][0]
    assert 1 > best["probability"] >= second["probability"] > 0
    other = client.predict(file(folder), second["word"], alternatives=0, api_name="/complete")
    assert other["words"][0] == second["word"]
    assert "alternatives" not in other
    plain = client.predict(file(folder), beam=1, api_name="/caption")
    assert plain["caption"] == found["caption"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prefix": "a dgo"}, "'dgo'"),
        ({"prefix": "a " * 500}, "longer than"),
        ({"alternatives": 11}, "from 0 to 10"),
        ({"alternatives": True}, "from 0 to 10"),
    ],
)
def test_what_a_sentence_cannot_begin_with_is_said(client, folder, wrong, message):
    with pytest.raises(exceptions.AppError, match=message):
        client.predict(file(folder), **wrong, api_name="/complete")


def test_many_photos_come_back_in_order_with_their_errors(client, folder):
    names = ["02.png", "broken.jpg", "two.zip"]
    rows = client.predict([file(folder, name) for name in names], api_name="/caption_batch")
    assert [row["image"] for row in rows] == ["02.png", "broken.jpg", "00.png", "01.png"]
    assert ["caption" in row for row in rows] == [True, False, True, True]
    assert "not a picture" in rows[1]["error"]
    single = client.predict(file(folder, "01.png"), api_name="/caption")
    assert rows[3]["caption"] == single["caption"]


def test_a_sentence_is_scored_as_the_library_does(client, captioner, folder):
    expected = captioner.score(str(folder / "00.png"), "a zorbly dog")
    found = client.predict(file(folder), "a zorbly dog", api_name="/score")
    assert found["words"] == ["a", "zorbly", "dog"]
    assert found["known"] == [True, False, True]
    assert found["log_probs"] == pytest.approx(expected.log_probs, abs=1e-3)
    assert found["score"] == pytest.approx(sum(found["log_probs"]), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "/etc/passwd"}, "no model '/etc/passwd': tiny, other"),
        ({"captions": 9}, "captions must be a whole number from 1 to 8"),
        ({"captions": True}, "captions must be"),
        ({"beam": 10**6}, "beam must be a whole number from 1 to 10"),
        ({"beam": "3"}, "beam must be"),
    ],
)
def test_what_is_not_possible_is_told(client, folder, options, said):
    with pytest.raises(exceptions.AppError, match=said):
        client.predict(file(folder), **options, api_name="/caption")


def test_a_bad_photo_or_sentence_is_told(client, folder):
    with pytest.raises(exceptions.AppError, match=r"^broken\.jpg: not a picture"):
        client.predict(file(folder, "broken.jpg"), api_name="/caption")
    with pytest.raises(exceptions.AppError, match="no words"):
        client.predict(file(folder), "...", api_name="/score")
    with pytest.raises(exceptions.AppError, match="longer than 300"):
        client.predict(file(folder), "dog " * 100, api_name="/score")


@pytest.mark.parametrize("endpoint", ["caption", "caption_batch", "complete", "score"])
@pytest.mark.parametrize("mark", [{"meta": MARK}, {}])
def test_no_file_of_the_machine_is_read(client, folder, endpoint, mark):
    """Neither one that the caller declares as a file nor one that it does not."""
    for path in (str(folder / "00.png"), "/etc/passwd", "http://127.0.0.1:9/a.jpg"):
        photo = {"path": path, "orig_name": "a.jpg", **mark}
        given = {"caption": [photo], "caption_batch": [[photo]], "score": [photo, "a dog"]}
        assert "error" in called(client, endpoint, given.get(endpoint, [photo]))


@pytest.mark.parametrize("photo", [None, 7, "/etc/passwd", "data:", [], {}, {"path": 3}])
def test_what_is_no_file_is_told(client, photo):
    assert "error" in called(client, "caption", [photo])


def test_a_photo_may_come_as_a_data_address(client, folder):
    """As Gradio's MCP server hands on the photos of a list."""
    encoded = base64.b64encode((folder / "00.png").read_bytes()).decode()
    address = "data:image/png;base64," + encoded
    assert "caption" in called(client, "caption", [address])
    assert "caption" in called(client, "caption_batch", [[address]])


def called(client, endpoint, data):
    """Call by plain HTTP; the text of the last event."""
    base = client.src + "gradio_api/call/" + endpoint
    names = {"caption": 5, "caption_batch": 4, "complete": 5, "score": 3}
    usual = {
        "caption": ["", 1, 3, False],
        "caption_batch": ["", 1, 3],
        "complete": ["a", "", 3, 5],
        "score": [""],
    }[endpoint]
    data = [*data, *usual][: names[endpoint]]
    event = httpx.post(base, json={"data": data}, timeout=30).json()["event_id"]
    return httpx.get(f"{base}/{event}", timeout=30).text


def test_the_endpoints_explain_themselves(client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert set(told) == {"/caption", "/caption_batch", "/complete", "/score"}
    assert all(each["description"] for each in told.values())
    assert [each["parameter_name"] for each in told["/score"]["parameters"]] == [
        "photo",
        "sentence",
        "model",
    ]


def test_the_command_explains_a_missing_mcp(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert cli.main(["demo", "--mcp"]) == 2
    assert "pip install 'captioner[mcp]'" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("mcp") is None, reason="the extra mcp is not installed")
def test_an_agent_finds_the_endpoints_as_tools(captioner, folder):
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    blocks, address = serve(Models.of({"tiny": captioner}), examples=[], mcp=True)
    encoded = base64.b64encode((folder / "00.png").read_bytes()).decode()
    photo = "data:image/png;base64," + encoded

    async def talk():
        async with (
            streamablehttp_client(address + "gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}
            found = await session.call_tool("caption", {"photo": photo})
            many = await session.call_tool("caption_batch", {"photos": [photo, photo]})
            stolen = await session.call_tool("caption", {"photo": str(folder / "00.png")})
            return tools, found, many, stolen

    try:
        tools, found, many, stolen = asyncio.run(talk())
    finally:
        blocks.close()
    assert tools == {"caption", "caption_batch", "complete", "score"}
    assert [answer.isError for answer in (found, many, stolen)] == [False, False, True]
    assert found.content[0].text.count("'caption':") == 1
    assert many.content[0].text.count("'caption':") == 2
