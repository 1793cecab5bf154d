"""What the demo allows its visitors, in one place."""

from __future__ import annotations

from typing import Any

UPLOAD = "20mb"
PHOTO = 20 << 20  # bytes of a photo inside a zip
MESSAGE = 2 * PHOTO  # bytes of a request that is no upload; a program may put a photo into it
ROOM = 2 << 30  # bytes on the disk for all visitors together
UNPACKED = 500 << 20  # bytes of all photos of a zip
PHOTOS = 200  # captioned at a time
TEXT = 300  # characters of a sentence, or of a list of words
QUEUE = 32  # visitors that may wait
SESSIONS = 200  # whose photo is remembered
CACHE = (600, 3600)  # seconds: how often uploads are looked through, and when they are deleted

# For events that run a model: one at a time, as each uses all cores of a CPU.
MODEL_QUEUE: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
    "show_progress": "minimal",
}

# For many photos at once: beside the queue of single ones, which need not wait for them.
BATCH_QUEUE: dict[str, Any] = MODEL_QUEUE | {"concurrency_id": "batch"}
