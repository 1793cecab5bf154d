r"""Pack captioned images small, to carry them to another machine: squares of WebP.

    python scripts/pack_images.py data packed \
      flickr8k/captions_train.json flickr8k/captions_val.json coco/captions_train.json

Each captions file is written to the same relative path, in COCO's form, with its images beside it,
so that a recipe takes either folder as `data.root`.
An image is squashed to the square, as the encoder does it: nothing is cropped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from captioner.data.annotations import Example, read_captions
from captioner.image.io import open_image
from captioner.utils.files import write_atomically
from captioner.utils.parallel import map_ahead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder that the captions files are relative to")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("captions", nargs="+", help="captions files, as a recipe names them")
    parser.add_argument("--size", type=int, default=224, help="side of the squares, in pixels")
    parser.add_argument("--quality", type=int, default=85, help="of WebP, up to 100")
    arguments = parser.parse_args()
    for name in arguments.captions:
        examples = read_captions(arguments.root / name)
        target = arguments.target / name
        images = target.parent / "images"
        images.mkdir(parents=True, exist_ok=True)

        def pack(example: Example, images: Path = images) -> str:
            file = f"{Path(example.image).stem}.webp"
            image = open_image(example.image).resize(
                (arguments.size, arguments.size), Image.Resampling.LANCZOS, reducing_gap=3
            )
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=arguments.quality)
            write_atomically(images / file, buffer.getvalue())
            return file

        workers = os.cpu_count() or 1
        files = map_ahead(pack, examples, workers=workers, depth=4 * workers)
        packed = {"images": [], "annotations": []}
        for number, file in enumerate(tqdm(files, total=len(examples), desc=name, unit="image")):
            packed["images"].append({"id": number, "file_name": file})
            for caption in examples[number].captions:
                annotation = {"id": len(packed["annotations"]), "image_id": number}
                packed["annotations"].append({**annotation, "caption": caption})
        write_atomically(target, json.dumps(packed).encode())


if __name__ == "__main__":
    main()
