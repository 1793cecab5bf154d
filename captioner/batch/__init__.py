"""Captioning many photos: sources of items, a run over them, sinks for the results.

    from captioner.batch.runner import caption_items
    from captioner.batch.sources import open_sources
    for item, result in caption_items(captioner, open_sources(["photos"])):
        ...

A source is an iterator of :class:`~captioner.batch.item.Item`; a sink follows
:class:`~captioner.batch.writers.Sink`. Nothing here holds more than a few batches of photos.
"""

FORMATS = ("text", "jsonl", "csv", "json", "coco", "sidecar", "parquet")
"""Of the results; `captioner.batch.writers.open_sink` makes them."""
