"""What was found in captions of one's own: counts for a person, full lists as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from captioner.data.examples import Example
from captioner.prepare.file_index import some
from captioner.prepare.write import count_splits
from captioner.tokenizer import tokenize

_SHOWN = 10  # words


@dataclass
class Report:
    """The findings; lists hold names of photos.

    Attributes:
        missing: Named, but not on disk. Left out.
        unreadable: Photo -> why it cannot be read. Left out.
        uncaptioned: Without any caption. Left out.
        strays: Text files without a photo.
        empty: Captions without a word. Left out.
        repeated: Captions that a photo has twice. Left out.
        shared: Caption -> number of photos, for captions of several photos.
        long: Captions with many words.
        conflicts: Named in two splits; the first counts.
        identical: Groups of photos whose files are the same.
        similar: Groups of photos that are the same or nearly, with their splits.
        leaks: Those of the groups that lie in several splits.
        splits_given: The splits are the file's own.
        unassigned: Photos that had no split while others had; they train.
        splits: Photos in each split.
        words: Figures of the words.
    """

    missing: list[str] = field(default_factory=list)
    unreadable: dict[str, str | None] = field(default_factory=dict)
    uncaptioned: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    long: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    identical: list[list[str]] = field(default_factory=list)
    similar: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    splits_given: bool = False
    unassigned: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    max_words: int = 0

    @property
    def failed(self) -> int:
        """Photos that had captions and were left out all the same."""
        return len(self.missing) + len(self.unreadable)

    def count(self, examples: Sequence[Example], max_words: int) -> None:
        """Take the figures of the captions that are kept."""
        self.max_words = max_words
        self.splits = count_splits(examples)
        vocabulary: Counter[str] = Counter()
        trained: set[str] = set()
        lengths = []
        photos_of: Counter[str] = Counter()
        for example in examples:
            for caption in example.captions:
                words = tokenize(caption)
                vocabulary.update(words)
                lengths.append(len(words))
                photos_of[" ".join(words)] += 1
                if example.split == "train":
                    trained.update(words)
                if len(words) > max_words:
                    self.long.append(f"{example.image_id}: {len(words)} words")
        self.shared = {text: number for text, number in photos_of.most_common() if number > 1}
        self.words = {
            "captions": len(lengths),
            "captions_per_photo": len(lengths) / len(examples),
            "words": int(sum(lengths)),
            "distinct": len(vocabulary),
            "once": sum(count == 1 for count in vocabulary.values()),
            "untrained": len(set(vocabulary) - trained),
            "length_mean": float(np.mean(lengths)),
            "length_median": float(np.median(lengths)),
            "length_max": int(max(lengths)),
            "most_frequent": vocabulary.most_common(_SHOWN),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**vars(self), "photos": sum(self.splits.values())}

    def lines(self) -> list[str]:
        """The findings in a few lines; nothing is said of what is in order."""
        words = self.words
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        lines = [
            f"{sum(self.splits.values()):,} photos ({splits}), {words['captions']:,} captions",
            f"{words['length_mean']:.1f} words a caption (median {words['length_median']:g},"
            f" longest {words['length_max']}), {words['distinct']:,} different words,"
            f" {words['once']:,} of them once, {words['untrained']:,} not in train",
        ]

        def say(text: str, found: Sequence[str]) -> None:
            if found:
                lines.append(f"{text}: {len(found):,} ({some(found)})")

        say("photos missing, left out", self.missing)
        reasons = [str(reason) for reason in self.unreadable.values()]
        say("photos that cannot be read, left out", reasons)
        say("photos without a caption, left out", self.uncaptioned)
        say("text files without a photo", self.strays)
        say("empty captions, left out", self.empty)
        say("captions that their photo has already, left out", self.repeated)
        shared = [f"{text!r} {number} times" for text, number in self.shared.items()]
        say("captions that several photos share", shared)
        say(f"captions of more than {self.max_words} words, which training cuts", self.long)
        say("photos named in two splits, the first counts", self.conflicts)
        say("groups of identical files", [" = ".join(names) for names in self.identical])
        kept = "" if self.splits_given else ", each kept in one split"
        alike = [" ~ ".join(names) for names in self.similar]
        say(f"groups of photos that are the same or nearly{kept}", alike)
        leaks = [" ~ ".join(names) for names in self.leaks]
        say("such groups in several splits, which makes scores too good", leaks)
        if self.unassigned:
            lines.append(
                f"photos without a split where others have one, taken to train: {self.unassigned:,}"
            )
        return lines
