"""METEOR 1.5 and SPICE by the official Java tools, where they can run; nothing is ever downloaded.

The tools are the jar files inside the package pycocoevalcap (extra `metrics`), started directly,
because the package's own wrappers download models, write into the package's folder, and format
numbers and text by the system's locale. Captions are split by the official tokenizer, Stanford
PTBTokenizer 3.4.1, as in coco-caption.

A tool that cannot run gives a result with a reason, not an error. SPICE needs two files that
pycocoevalcap does not contain, and about 8 GB of memory.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

TOKENIZER = "Stanford PTBTokenizer 3.4.1"
# Removed after tokenizing.
_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Otherwise Java follows the system's locale: "0,195" for a number, "?" for a letter.
_NEUTRAL = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")


class UnusableError(Exception):
    """An official tool cannot run here; the message is one sentence that tells why."""


@dataclass(frozen=True)
class OfficialScore:
    """The scores of one official tool.

    Attributes:
        name: `METEOR` or `SPICE`.
        score: The corpus score, 0 to 1; None if the tool could not run.
        per_image: (images,) scores of the single captions, if it could.
        implementation: The program that computed it.
        tokenizer: The program that split captions into words for it.
        reason: Why there is no score, if there is none.
    """

    name: str
    score: float | None
    per_image: npt.NDArray[np.float64] | None = field(repr=False)
    implementation: str
    tokenizer: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scores per image, as JSON can hold it."""
        keys = ("score", "implementation", "tokenizer", "reason")
        return {key: getattr(self, key) for key in keys}


def official_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[OfficialScore]:
    """Compute METEOR 1.5 and SPICE of captions as written.

    Args:
        candidates: One caption per image; "" for an image without one.
        references: For every image one or more captions.

    Returns:
        METEOR and SPICE, each with a score or the reason why there is none.
    """
    tokens: tuple[list[str], list[list[str]]] | None = None
    why = ""
    try:
        flat = ptb_tokenize([*candidates, *chain.from_iterable(references)])
        rest = iter(flat[len(candidates) :])
        tokens = flat[: len(candidates)], [[next(rest) for _ in group] for group in references]
    except UnusableError as error:
        why = str(error)

    def score(
        name: str,
        implementation: str,
        tool: Callable[[list[str], list[list[str]]], tuple[float, list[float]]],
    ) -> OfficialScore:
        reason = why
        if tokens is not None:
            try:
                corpus, single = tool(*tokens)
                return OfficialScore(name, corpus, np.array(single), implementation, TOKENIZER)
            except UnusableError as error:
                reason = str(error)
        return OfficialScore(name, None, None, implementation, TOKENIZER, reason)

    package = _package_name()
    return [
        score("METEOR", f"METEOR 1.5 (meteor-1.5.jar of {package})", meteor),
        score("SPICE", f"SPICE 1.0 (spice-1.0.jar of {package})", spice),
    ]


def ptb_tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenize captions as the official evaluation does: lower-case words separated by spaces.

    Args:
        captions: Any texts; line breaks count as spaces.

    Raises:
        UnusableError: Java or the package is missing, or Java fails.
    """
    jar = _jar("tokenizer/stanford-corenlp-3.4.1.jar")
    tool = "edu.stanford.nlp.process.PTBTokenizer"
    command = [*_java(), "-cp", str(jar), tool, "-preserveLines", "-lowerCase"]
    lines = "".join(" ".join(caption.split()) + "\n" for caption in captions)
    run = subprocess.run(command, input=lines.encode("utf-8", "replace"), capture_output=True)
    tokenized = run.stdout.decode("utf-8", "replace").split("\n")
    if run.returncode or len(tokenized) != len(captions) + 1:
        raise UnusableError(f"the official tokenizer failed ({_last_line(run.stderr)})")
    return [
        " ".join(word for word in line.split(" ") if word and word not in _PUNCTUATION)
        for line in tokenized[: len(captions)]
    ]


def meteor(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Compute METEOR 1.5 (Denkowski and Lavie 2014), English, normalised, as coco-caption does.

    Args:
        candidates: One tokenized caption per image.
        references: For every image one or more tokenized captions.

    Returns:
        The corpus score, and one score per image.

    Raises:
        UnusableError: Java or the package is missing, or METEOR fails.
    """
    jar = _jar("meteor/meteor-1.5.jar")
    command = [*_java(), "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with _conversation(command) as ask:
        statistics = []
        for candidate, captions in zip(candidates, references, strict=True):
            fields = [*captions, candidate]
            clean = [" ".join(text.replace("|||", " ").split()) for text in fields]
            statistics.append(ask(" ||| ".join(["SCORE", *clean]), 1)[0])
        answers = ask(" ||| ".join(["EVAL", *statistics]), len(statistics) + 1)
        try:
            scores = [float(answer) for answer in answers]
        except ValueError:
            raise UnusableError("METEOR answered with something that is no number") from None
    return scores[-1], scores[:-1]


def spice(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """Compute SPICE 1.0 (Anderson et al. 2016): the F score of objects, attributes and relations.

    Arguments and result are those of `meteor`; the corpus score is the mean.

    Raises:
        UnusableError: Java, the package or the models are missing, or SPICE fails.
    """
    jar = _jar("spice/spice-1.0.jar")
    missing = [name for name in _SPICE_MODELS if not (jar.parent / "lib" / name).is_file()]
    if missing:
        raise UnusableError(
            f"{' and '.join(missing)} are not part of pycocoevalcap: put them into its folder "
            "spice/lib (they are in Stanford CoreNLP 3.6.0, 2015-12-09)"
        )
    pairs = zip(candidates, references, strict=True)
    content = [{"image_id": i, "test": c, "refs": list(r)} for i, (c, r) in enumerate(pairs)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "captions.json"), Path(folder, "scores.json")
        source.write_text(json.dumps(content), encoding="utf-8")
        command = [*_java(), "-Xmx8G", "-jar", str(jar), str(source), "-out", str(target)]
        run = subprocess.run([*command, "-silent"], capture_output=True, cwd=jar.parent)
        try:
            found = {e["image_id"]: e["scores"]["All"]["f"] for e in json.loads(target.read_text())}
            single = [float(found[i]) for i in range(len(content))]
        except (OSError, ValueError, KeyError, TypeError):
            raise UnusableError(f"SPICE failed ({_last_line(run.stderr)})") from None
    return float(np.nanmean(single)) if single else math.nan, single


def _package_name() -> str:
    try:
        return f"pycocoevalcap {importlib.metadata.version('pycocoevalcap')}"
    except importlib.metadata.PackageNotFoundError:
        return "pycocoevalcap"


def _jar(name: str) -> Path:
    """Return the path of a file of pycocoevalcap."""
    spec = importlib.util.find_spec("pycocoevalcap")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise UnusableError(
            "the package pycocoevalcap is not installed (pip install 'captioner[metrics]')"
        )
    for folder in folders:
        if (path := Path(folder, name)).is_file():
            return path
    raise UnusableError(f"this copy of pycocoevalcap has no {Path(name).name}: install it again")


def _java() -> list[str]:
    """Return the beginning of every command."""
    return [_working_java(os.environ.get("JAVA_HOME"), os.environ.get("PATH")), *_NEUTRAL]


@functools.cache
def _working_java(home: str | None, search: str | None) -> str:
    """Return a Java that starts; some systems have a placeholder of that name that does not."""
    name = (home and shutil.which("java", path=os.path.join(home, "bin"))) or None
    name = name or shutil.which("java", path=search)
    if name:
        with contextlib.suppress(OSError):
            run = subprocess.run([name, "-version"], capture_output=True, stdin=subprocess.DEVNULL)
            if run.returncode == 0 and re.search(rb"version", run.stderr + run.stdout):
                return name
    raise UnusableError("Java is not installed")


@contextlib.contextmanager
def _conversation(command: list[str]) -> Iterator[Callable[[str, int], list[str]]]:
    """Run a program while the block runs; `ask(line, n)` returns its next n lines of output."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
        )
        into, out = _pipe(process.stdin), _pipe(process.stdout)

        def ask(line: str, answers: int) -> list[str]:
            try:
                into.write(line + "\n")
                into.flush()
                got = [out.readline() for _ in range(answers)]
            except OSError:
                got = [""]
            if not all(got):  # it ended
                process.wait()
                errors.seek(0)
                raise UnusableError(f"METEOR failed ({_last_line(errors.read())})")
            return [answer.strip() for answer in got]

        try:
            yield ask
        finally:
            process.kill()
            process.wait()
            out.close()
            with contextlib.suppress(OSError):
                into.close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _last_line(output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else "it says nothing"
