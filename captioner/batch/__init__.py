"""Captioning many images: sources of items, a run over them, writers for the results.

    from captioner.batch.runner import caption_items
    from captioner.batch.sources import open_sources
    for item, result in caption_items(captioner, open_sources(["photos"])):
        ...

A source is an iterator of `item.Item`, and `writers.Writer` is what a run writes to. Nothing here
holds more than a few batches of images.
"""

FORMATS = ("text", "jsonl", "csv", "json", "coco", "sidecar", "parquet")
"""Formats of results; `writers.open_writer` opens them."""
