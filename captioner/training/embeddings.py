"""Word embeddings that start from vectors learnt elsewhere: GloVe or word2vec, as text.

A line of such a file is a word and its numbers; word2vec has the number of words and their size in
a line before. Captions are few, so vectors from billions of words can help with rare ones.

Shapes: V vocabulary, E embedding size.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from captioner.config import Config
from captioner.errors import ConfigError, DataError
from captioner.models.caption_model import CaptionModel
from captioner.tokenizer import Vocabulary

logger = logging.getLogger(__name__)


def start_embeddings(model: CaptionModel, vocabulary: Vocabulary, config: Config) -> None:
    """Set the embeddings of the words that ``config.data.embeddings`` knows; the others stay.

    Does nothing if the recipe names no file. Vectors are taken as they are, and train like any
    other weight.

    Raises:
        ConfigError: The recipe starts from a model as well, or the vectors have another size than
            ``model.decoder.embedding``.
        DataError: The file cannot be read, or knows none of the words.
    """
    if config.data.embeddings is None:
        return
    if config.init is not None:
        raise ConfigError(
            f"data.embeddings is for a new model, and init={config.init} brings trained "
            "embeddings: drop one of the two"
        )
    path = Path(config.data.embeddings)
    weight = model.decoder.embed.weight  # (V, E)
    found = read_vectors(path, vocabulary, weight.shape[1])
    with torch.no_grad():
        for word, vector in found.items():
            weight[word] = torch.from_numpy(vector)
    words = len(vocabulary) - len(Vocabulary.SPECIALS)
    logger.info("word embeddings: %d of %d words from %s", len(found), words, path)


def read_vectors(path: Path, vocabulary: Vocabulary, size: int) -> dict[int, np.ndarray]:
    """The vectors of a vocabulary's words.

    Args:
        path: A text file, gzipped if its name ends in ``.gz``. Of a word that occurs twice the
            first vector counts.
        vocabulary: The words; its specials (``<unk>`` ...) are not looked for.
        size: E.

    Returns:
        From ids to (E,) fp32.

    Raises:
        ConfigError: The vectors have another size.
        DataError: The file cannot be read, or knows none of the words.
    """
    ids = {word: number for number, word in enumerate(vocabulary.to_list())}
    for special in Vocabulary.SPECIALS:
        ids.pop(special, None)
    found: dict[int, np.ndarray] = {}
    for number, line in enumerate(_lines(path), start=1):
        if number == 1:
            _check_size(line, size, path)
        word, *_ = line.split(maxsplit=1) or [""]
        if word not in ids or ids[word] in found:
            continue
        # From the right: in some files of GloVe there are words with spaces in them.
        first, *numbers = line.split()[-size - 1 :]
        try:
            vector = np.array(numbers, dtype=np.float32)
            if len(vector) != size or not np.isfinite(vector).all():
                raise ValueError
        except ValueError:
            raise DataError(f"{path}, line {number}: {word!r} should have {size} numbers") from None
        if first == word:  # else the word goes on: "at home" is not "at"
            found[ids[word]] = vector
    if not found:
        raise DataError(
            f"{path} knows none of the {len(ids):,} words of the captions: is it a text file of "
            "word vectors, of the same language?"
        )
    return found


def _check_size(line: str, size: int, path: Path) -> None:
    """Compare the first line, of word2vec's counts or of a word, with the embeddings.

    Raises:
        ConfigError: Another size.
        DataError: It is no such line.
    """
    fields = line.split()
    header = len(fields) == 2 and all(field.isdecimal() for field in fields)
    there = int(fields[1]) if header else len(fields) - 1
    if there < 1:
        raise DataError(f"{path}: no word vectors in text form (a word and its numbers a line)")
    if there != size:
        raise ConfigError(
            f"{path} holds vectors of {there} numbers and model.decoder.embedding is {size}: "
            f"set model.decoder.embedding={there}, or take another file"
        )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends.

    Raises:
        DataError: It cannot be read.
    """
    try:
        packed = path.suffix == ".gz"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            for line in file:
                yield line.decode("utf-8", errors="replace").rstrip()
    except OSError as error:
        reason = error.strerror or str(error)  # gzip's own errors have no strerror
        raise DataError(f"cannot read the word vectors {path}: {reason}") from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"cannot read the word vectors {path}: {error}") from None
