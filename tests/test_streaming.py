"""What a GPU does with a stream, on a CPU: its searches, its order of work, its readers."""

import pytest
from helpers.tiny_files import make_photos

from captioner import Caption, Captioner, Failure
from captioner.backends.torch import TorchBackend
from captioner.image import reader_processes


class DeviceBackend(TorchBackend):
    """Searches by itself, as on a GPU, and notes when it encodes and searches."""

    lanes = 1
    batch_size = 2
    events: list[str]

    def encode(self, pixels):
        self.events.append("encode")
        return super().encode(pixels)

    def search(self, memory, options, keys):
        def search():
            self.events.append("search")
            with self.inference():
                return self._device_search.hypotheses(memory, options, keys)

        return search


@pytest.fixture(scope="module")
def host(model):
    return Captioner.from_pretrained(model, backend="torch", device="cpu", precision="fp32")


@pytest.fixture
def device(model):
    backend = DeviceBackend.load(model, "cpu", "fp32")
    backend.events = []
    return Captioner.from_backend(backend)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "photos"
    make_photos(folder, 9)
    return sorted(folder.iterdir())


def texts(results):
    return [r.text if isinstance(r, Caption) else type(r) for r in results]


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 3},
        {"beam": 4, "num_captions": 2, "mbr": 4, "length_penalty": 0.7},
        {"sample": True, "num_captions": 2, "seed": 3},
    ],
)
def test_captions_are_those_of_the_search_on_the_host(host, device, files, options):
    found = list(device.stream(files, max_length=8, **options))
    expected = list(host.stream(files, max_length=8, batch_size=2, **options))
    assert texts(found) == texts(expected)
    assert [c.score for c in found] == pytest.approx([c.score for c in expected], abs=1e-4)
    assert [texts(c.candidates) for c in found] == [texts(c.candidates) for c in expected]
    assert device.backend.events.count("search") == 5  # batches of two, by default


def test_a_batch_is_encoded_before_the_one_before_is_searched(device, files):
    list(device.stream(files[:6], max_length=4))
    assert device.backend.events == ["encode", "encode", "search", "encode", "search", "search"]


def test_failures_keep_their_places(device, files):
    sources = [files[0], "no", "none", "nothing", "never", files[1], files[2]]
    found = texts(device.stream(sources, max_length=4))
    assert found == [
        *texts(device.stream(files[:1], max_length=4)),
        *[Failure] * 4,
        *texts(device.stream(files[1:3], max_length=4)),
    ]


@pytest.mark.skipif(not reader_processes.available(), reason="needs memfd_create")
def test_long_streams_are_read_by_processes(device, files, monkeypatch):
    """Only where the device asks for it, and only more than two batches of files."""
    asked = []
    read = reader_processes.read_in_processes

    def counted(sources, shapes, workers, depth):
        asked.append(workers)
        return read(sources, shapes, workers, depth)

    monkeypatch.setattr("captioner.streaming.read_in_processes", counted)
    expected = texts(device.stream([*files, "missing"], max_length=4))
    assert asked == []
    monkeypatch.setattr(DeviceBackend, "reads_in_processes", True)
    assert texts(device.stream([*files, "missing"], max_length=4, workers=2)) == expected
    assert asked == [2]
    list(device.stream(files[:4], max_length=4, workers=2))  # two batches
    list(device.stream(files, max_length=4, workers=1))
    list(device.stream([file.open("rb") for file in files], max_length=4, workers=2))
    assert asked == [2]
