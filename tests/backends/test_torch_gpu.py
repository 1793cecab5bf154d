"""The shipped model on a GPU captions as it does on a CPU."""

import pytest
from PIL import Image

from captioner import Captioner
from captioner.api import DEFAULT_WEIGHTS

EXAMPLES = DEFAULT_WEIGHTS.parents[2] / "examples"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="needs the shipped weights"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of the example photos: more than two batches of eight, so that processes read them."""
    folder = tmp_path_factory.mktemp("crops")
    for file in sorted(EXAMPLES.glob("*.jpg")):
        with Image.open(file) as image:
            width, height = image.size
            for x in range(3):
                for y in range(3):
                    corner = x * width // 8, y * height // 8
                    crop = (*corner, corner[0] + 3 * width // 4, corner[1] + 3 * height // 4)
                    image.crop(crop).save(folder / f"{file.stem}{x}{y}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize(
    "options",
    [
        {"beam": 3},
        {"beam": 5, "num_captions": 5, "length_penalty": 0.8},
        {"sample": True, "seed": 1, "top_p": 0.9},
        {"beam": 4, "groups": 2},  # which the host searches
    ],
)
def test_captions_are_nearly_all_those_of_the_cpu(photos, options, precision):
    found = {}
    for device in ("cpu", "cuda"):
        captioner = Captioner.from_pretrained(
            backend="torch", device=device, precision=precision if device == "cuda" else "fp32"
        )
        found[device] = list(captioner.stream(photos, batch_size=8, workers=2, **options))
    assert len(photos) > 16
    pairs = list(zip(found["cpu"], found["cuda"], strict=True))
    equal = [(one, other) for one, other in pairs if one.text == other.text]
    assert len(equal) >= 0.8 * len(pairs)
    for one, other in equal:
        assert one.score == pytest.approx(other.score, abs=0.1)
        assert abs(one.attention - other.attention).max() < 0.1


def test_threads_may_caption_at_the_same_time(photos):
    """Graphs and their tensors belong to one batch at a time."""
    from concurrent.futures import ThreadPoolExecutor

    captioner = Captioner.from_pretrained(backend="torch", device="cuda", precision="fp32")

    def texts(count):
        return [c.text for c in captioner.stream(photos[:count], batch_size=4, workers=1)]

    counts = [12, 5, 12, 9, 1, 7]
    expected = texts(12)
    with ThreadPoolExecutor(4) as threads:
        for count, found in zip(counts, threads.map(texts, counts), strict=True):
            same = sum(a == b for a, b in zip(found, expected, strict=False))
            assert same >= 0.8 * count
