"""COCO instances files with drawn objects."""

import json

import numpy as np

WIDTH, HEIGHT = 40, 30
NAMES = {1: ("dog", "animal"), 2: ("person", "person"), 3: ("frisbee", "sports")}


def box(top, left, bottom, right):
    """A boolean mask (HEIGHT, WIDTH) of one rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def run_lengths(mask):
    """COCO's uncompressed run-length form: columns first, starting with a run of zeros."""
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [len(flat)]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def write_instances(path, photos):
    """An instances file; `photos` maps an image id to a list of (category id, mask, iscrowd)."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in photos
        ],
        "categories": [
            {"id": i, "name": name, "supercategory": above} for i, (name, above) in NAMES.items()
        ],
        "annotations": [
            {
                "id": 100 * i + n,
                "image_id": i,
                "category_id": category,
                "iscrowd": crowd,
                "segmentation": run_lengths(mask),
            }
            for i, objects in photos.items()
            for n, (category, mask, crowd) in enumerate(objects)
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
