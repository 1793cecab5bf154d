"""The commands `captioner evaluate` and `captioner compare`.

Scoring existing captions needs no PyTorch and does not import it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.checkpoint import read_document
from captioner.cli.options import given_search_options, model_options, search_options
from captioner.data.annotations import read_captions
from captioner.errors import CaptionerError, ConfigError
from captioner.evaluation.compare import compare_files
from captioner.evaluation.masks import CocoInstances
from captioner.evaluation.report import ReportImage, check_libraries, write_report
from captioner.evaluation.results import score_results
from captioner.metrics.diversity import training_captions
from captioner.utils.files import replacing

if TYPE_CHECKING:
    from captioner.api import Caption
    from captioner.data.annotations import Example


def evaluate_model(arguments: argparse.Namespace) -> int:
    """Score a model on captioned images: `captioner evaluate`."""
    if arguments.report:
        check_libraries()
    search = search_options(arguments)
    examples = read_captions(arguments.captions, arguments.images, arguments.split)

    from captioner.batch.runner import load_captioner
    from captioner.evaluation.evaluate import evaluate

    if arguments.backend == "auto" and _needs_gradients(arguments):
        arguments.backend = "torch"
    captioner = load_captioner(**model_options(arguments))

    photos: list[ReportImage] = []

    def watch(example: Example, caption: Caption) -> None:
        if arguments.report:
            photos.append(ReportImage.of(example, caption))

    result = evaluate(
        captioner,
        examples,
        instances=[Path(name) for name in arguments.instances],
        deletions=arguments.faithfulness,
        training=_training_captions(arguments.training),
        official=arguments.official,
        watch=watch,
        batch_size=arguments.batch_size,
        progress=not arguments.quiet and sys.stderr.isatty(),
        **search,
    )
    if arguments.json:
        _write_json(arguments.json, result.to_dict())
    if arguments.results_out:
        _write_json(arguments.results_out, result.quality.results)
    if arguments.report:
        names = map(os.path.basename, arguments.model or ["the shipped model"])
        title = " + ".join(names)
        write_report(arguments.report, result.quality, photos, title=title, evaluation=result)
    print(result.table())  # last, as the reader of a pipe may be gone
    return 1 if result.failures else 0


def evaluate_captions(arguments: argparse.Namespace) -> int:
    """Score a file of captions: `captioner evaluate --results`."""
    others = [name for name in ("model", "faithfulness", "results_out") if getattr(arguments, name)]
    options = ["--" + name.replace("_", "-") for name in others]
    for option in (*options, *given_search_options(arguments)):
        raise ConfigError(f"{option} is for scoring a model; --results scores captions")
    if arguments.report:
        check_libraries()

    examples = read_captions(arguments.captions, split=arguments.split, missing="ignore")
    result = score_results(
        arguments.results,
        examples,
        objects=CocoInstances(*arguments.instances).present if arguments.instances else None,
        training=_training_captions(arguments.training),
        official=arguments.official,
    )
    if arguments.json:
        _write_json(arguments.json, result.to_dict())
    if arguments.report:
        found: list[Example] = []
        with contextlib.suppress(CaptionerError):  # no image at all: a page of text
            found = read_captions(
                arguments.captions, arguments.images, arguments.split, missing="skip"
            )
        photos = [ReportImage(example.image_id, example.image) for example in found]
        title = os.path.basename(arguments.results)
        notes = result.matching.lines()
        write_report(arguments.report, result.quality, photos, title=title, notes=notes)
    print(result.table())
    return 0 if result.matching.complete else 1


def compare(arguments: argparse.Namespace) -> int:
    """Compare two sets of captions: `captioner compare`."""
    examples = None
    if arguments.captions:
        examples = read_captions(arguments.captions, split=arguments.split, missing="ignore")
    result = compare_files(arguments.a, arguments.b, examples, seed=arguments.seed)
    print(result.table())
    if arguments.json:
        _write_json(arguments.json, result.to_dict())
    return 0


def _needs_gradients(arguments: argparse.Namespace) -> bool:
    """Whether the deletion check or saliency maps are to be computed, which needs PyTorch."""
    models = arguments.model or []
    can = len(models) < 2 and not any("export" in read_document(model) for model in models)
    return bool(arguments.faithfulness or (arguments.instances and can))


def _training_captions(path: str | None) -> frozenset[tuple[str, ...]] | None:
    """Return the captions of a training set, to count copies of them."""
    if path is None:
        return None
    examples = read_captions(path, missing="ignore")
    return training_captions(caption for example in examples for caption in example.captions)


def _write_json(path: str, value: Any) -> None:
    with replacing(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")
