"""A data set that is drawn: coloured shapes on plain ground, captioned by what they are.

python tests/pictures.py FOLDER    # draws them all, for configs/tiny.yaml
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 70, 230)}
SHAPES = ("circle", "cross")
GROUNDS = {"white": (250, 250, 250), "black": (10, 10, 10)}
SIZE = 64  # pixels


def scenes(count):
    """The first `count` (color, shape, ground): no two alike."""
    every = [(c, s, g) for s in SHAPES for g in GROUNDS for c in COLORS]
    return every[:count]


def sentences(color, shape, ground):
    """What can be said of a picture, in different lengths; the first names all of it."""
    return [
        f"A {color} {shape} on {ground} ground.",
        f"Something {color}",
        f"There is one {shape} here, and its color is {color}.",
    ]


def draw(color, shape, ground):
    """One picture, (SIZE, SIZE)."""
    picture = Image.new("RGB", (SIZE, SIZE), GROUNDS[ground])
    pen = ImageDraw.Draw(picture)
    ends, middle = (4, SIZE - 5), (SIZE // 2 - 6, SIZE // 2 + 5)
    if shape == "circle":
        pen.ellipse((ends[0], ends[0], ends[1], ends[1]), fill=COLORS[color])
    else:
        pen.rectangle((ends[0], middle[0], ends[1], middle[1]), fill=COLORS[color])
        pen.rectangle((middle[0], ends[0], middle[1], ends[1]), fill=COLORS[color])
    return picture


def write_pictures(folder, count=6, captions=1):
    """Draw pictures into `folder`/images and describe them in a COCO captions JSON.

    Args:
        folder: Where; made if it is absent.
        count: Pictures, at most 12.
        captions: Of each picture, at most 3.

    Returns:
        The path of the JSON file.
    """
    images, annotations = [], []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes(count)):
        name = f"{'-'.join(scene)}.png"
        draw(*scene).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        for sentence in sentences(*scene)[:captions]:
            annotations.append({"id": len(annotations), "image_id": number, "caption": sentence})
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_pictures(Path(sys.argv[1]), count=12))
