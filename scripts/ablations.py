"""Ablations: what each part of the model and of its training is worth.

    python scripts/ablations.py FOLDER                          # all that is missing, then the page
    python scripts/ablations.py FOLDER --list                   # what there is to run
    python scripts/ablations.py FOLDER --only base --only gate_off --epochs 2 --limit 1000
    python scripts/ablations.py FOLDER --report-only            # the page, from what is there

FOLDER holds flickr8k/ and coco/ (see configs/flickr8k.yaml), and for `texts`
flickr30k_captions/text_only.txt.gz. Every ablation is a `captioner train` of that recipe with the
overrides below, once per seed, into runs/ablations/NAME-SEED. What is done is skipped, an
interrupted run goes on. A run that was made with other settings (--epochs, --limit) is refused:
name another folder with --runs. Then the attention of each is measured against the masks of COCO's
photos, and the tables are written into docs/ablations.md; what stands there outside of them stays.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation_tables import Line, Result, read_result, write_tables
from attention_figures import outlined_photos

from captioner import Captioner
from captioner.config import Config, load_config
from captioner.errors import CaptionerError
from captioner.evaluation.evaluate import evaluate
from captioner.training.data import read_examples
from captioner.training.log import LOG_FILE, read_log
from captioner.training.run_state import check_same_recipe
from captioner.utils.files import replacing

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "flickr8k.yaml"
PAGE = ROOT / "docs" / "ablations.md"
BEAMS = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class Ablation:
    """One change to the base recipe.

    Attributes:
        name: Of its runs.
        group: The table it stands in.
        label: What the table calls it.
        overrides: Of the recipe.
        after: The ablation whose best model it starts from; "" for ImageNet weights alone.
        against: The one it is compared with.
    """

    name: str
    group: str
    label: str
    overrides: tuple[str, ...] = ()
    after: str = ""
    against: str = "base"


def _kind(kind: str) -> Ablation:
    return Ablation(kind, "Kind of attention", kind, (f"model.attention.kind={kind}",))


# All start from the recipe of the first shipped model: the gate per channel came out of this.
_BASE = ("model.decoder.gate=scalar",)
_COARSE = "model.encoder.strides=[32]"
_TUNED = ("optim.learning_rate=4e-4", "optim.encoder_learning_rate=1e-4")
_SCST = (
    "loss.objective=self_critical",
    "optim.learning_rate=1.5e-4",
    "optim.warmup=100",
    "model.decoder.dropout=0.2",
)
ABLATIONS = (
    Ablation("base", "Base", "base: the recipe with a scalar gate"),
    *map(_kind, ("dot", "general", "scaled_dot", "multi_head")),
    Ablation("grid_7", "Grid", "7×7: the coarse stage alone", (_COARSE,)),
    Ablation(
        "grid_14_coarse",
        "Grid",
        "14×14, the coarse stage enlarged",
        (_COARSE, "model.encoder.grid=14"),
    ),
    Ablation(
        "image_288",
        "Grid",
        "14×14 from photos of 288×288 pixels instead of 224×224",
        ("model.encoder.image_size=288", "model.encoder.grid=14"),
    ),
    Ablation(
        "head",
        "Grid",
        "with the last convolution before ImageNet's classifier",
        ("model.encoder.head=true",),
    ),
    Ablation("gate_off", "Decoder", "no gate on the context", ("model.decoder.gate=off",)),
    Ablation(
        "gate_channel",
        "Decoder",
        "a gate per channel: the recipe as it is",
        ("model.decoder.gate=channel",),
    ),
    Ablation("shallow_output", "Decoder", "no deep output", ("model.decoder.deep_output=false",)),
    Ablation(
        "query_hidden",
        "Decoder",
        "the query does not see the previous word",
        ("model.attention.see_word=false",),
    ),
    Ablation("smooth", "Decoder", "smoothed maps", ("model.attention.smooth=true",)),
    Ablation("no_penalty", "Penalty on the maps", "none", ("loss.entropy=0",)),
    Ablation(
        "coverage_paper",
        "Penalty on the maps",
        "the paper's coverage, τ = 1 (λ as in paper_soft.yaml)",
        ("loss.entropy=0", "loss.coverage=0.028", "loss.coverage_target=1"),
    ),
    Ablation(
        "coverage_mean",
        "Penalty on the maps",
        "coverage with τ = T/L",
        ("loss.entropy=0", "loss.coverage=0.028"),
    ),
    Ablation("no_smoothing", "Loss", "no label smoothing", ("loss.label_smoothing=0",)),
    Ablation("scheduled", "Loss", "scheduled sampling to 0.25", ("loss.scheduled_sampling=0.25",)),
    Ablation(
        "grid_dropout",
        "Against overfitting",
        "a quarter of the grid's channels hidden",
        ("model.encoder.dropout=0.25",),
    ),
    Ablation(
        "copies",
        "Against overfitting",
        "four versions of each photo, three augmented",
        ("data.augment=true", "data.copies=4"),
    ),
    Ablation(
        "texts",
        "Language before pictures",
        "three epochs of Flickr30k's sentences first",
        ("data.texts=[flickr30k_captions/text_only.txt.gz]",),
    ),
    Ablation("longer", "Second step", "as many epochs again, all frozen", _TUNED, "base"),
    Ablation(
        "finetune",
        "Second step",
        "the CNN's last two stages train, on augmented photos",
        (
            *_TUNED,
            "model.encoder.trainable_stages=2",
            "model.encoder.train_depthwise=false",
            "data.augment=true",
            "data.workers=2",
        ),
        "base",
        "longer",
    ),
    Ablation("scst", "Second step", "self-critical training", _SCST, "base", "longer"),
    Ablation(
        "scst_greedy",
        "Second step",
        "self-critical training, greedy baseline",
        (*_SCST, "loss.baseline=greedy"),
        "base",
        "longer",
    ),
)
NAMES = [ablation.name for ablation in ABLATIONS]


@dataclass(frozen=True)
class Protocol:
    """How all ablations are run.

    Attributes:
        folder: Of the data.
        runs: Folder of the runs.
        seeds: One run of each.
        settings: Overrides of every recipe.
    """

    folder: Path
    runs: Path
    seeds: Sequence[int]
    settings: tuple[str, ...]

    def out(self, name: str, seed: int) -> Path:
        """A run's folder."""
        return self.runs / f"{name}-{seed}"

    def overrides(self, ablation: Ablation, seed: int) -> list[str]:
        """All that is changed in the recipe."""
        out = self.out(ablation.name, seed)
        start = [f"init={self.out(ablation.after, seed) / 'best.safetensors'}"]
        return [
            f"out={out}",
            f"seed={seed}",
            f"data.root={self.folder}",
            f"data.cache={self.runs / 'cache'}",
            "log.samples=0",
            *self.settings,
            *_BASE,
            *ablation.overrides,
            *(start if ablation.after else []),
        ]

    def config(self, ablation: Ablation, seed: int) -> Config:
        """The recipe in full."""
        return load_config(RECIPE, self.overrides(ablation, seed))

    def done(self, ablation: Ablation, seed: int) -> bool:
        """Whether a run is finished.

        Raises:
            CaptionerError: It was made with other settings.
        """
        config, out = self.config(ablation, seed), self.out(ablation.name, seed)
        if not (out / "config.yaml").exists():
            return False
        try:
            check_same_recipe(config, out / "config.yaml")
        except CaptionerError as error:
            raise CaptionerError(f"{error}; or name another folder with --runs") from None
        return (out / LOG_FILE).exists() and any(
            "validation" in record and record["epoch"] == config.optim.epochs
            for record in read_log(out)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds flickr8k/ and coco/")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help="and base")
    parser.add_argument("--list", action="store_true", help="show what there is, and stop")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--epochs", type=int, default=4, help="of each step (4)")
    parser.add_argument("--limit", type=int, metavar="N", help="training photos")
    parser.add_argument("--photos", type=int, metavar="N", help="validation and mask photos")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ablations", metavar="DIR")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/ablations.md")
    arguments = parser.parse_args()
    settings = [f"optim.epochs={arguments.epochs}"]
    settings += [f"data.limit={arguments.limit}"] if arguments.limit else []
    settings += [f"validation.limit={arguments.photos}"] if arguments.photos else []
    protocol = Protocol(arguments.folder, arguments.runs, arguments.seeds, tuple(settings))
    chosen = [a for a in ABLATIONS if not arguments.only or a.name in (*arguments.only, "base")]
    needed = {a.after for a in chosen} | {a.against for a in chosen}
    chosen = [a for a in ABLATIONS if a in chosen or a.name in needed]
    try:
        if arguments.list:
            show(protocol, chosen)
            return
        if not arguments.report_only:
            for ablation in chosen:
                for seed in protocol.seeds:
                    run(protocol, ablation, seed, arguments.photos)
        write_page(protocol, arguments.page)
    except CaptionerError as error:
        sys.exit(str(error))


def show(protocol: Protocol, ablations: Sequence[Ablation]) -> None:
    """Print the ablations and how far they are."""
    left = 0
    for ablation in ablations:
        states = []
        for seed in protocol.seeds:
            done = protocol.done(ablation, seed)
            left += not done
            states.append(f"{seed}: {'done' if done else 'to do'}")
        after = f"after {ablation.after}: " if ablation.after else ""
        print(f"{ablation.name:16}{', '.join(states):24}{after}{' '.join(ablation.overrides)}")
    print(f"{left} runs to do, of {protocol.settings[0].partition('=')[2]} epochs each")


def run(protocol: Protocol, ablation: Ablation, seed: int, photos: int | None) -> None:
    """Train, and measure what was trained, unless that is done already."""
    out = protocol.out(ablation.name, seed)
    if not protocol.done(ablation, seed):
        print(f"== {out.name}", file=sys.stderr)
        command = [sys.executable, "-m", "captioner", "train", str(RECIPE)]
        command += protocol.overrides(ablation, seed)
        command += ["--resume"] if (out / "last").exists() else []
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            sys.exit(f"{out} failed or was stopped; the same command goes on")
    shutil.rmtree(out / "last", ignore_errors=True)  # half a gigabyte, and no longer needed
    captioner = None
    if not (out / "attention.json").exists():
        captioner = Captioner.from_pretrained(out / "best.safetensors")
        save(out / "attention.json", attention_figures(captioner, protocol.folder / "coco", photos))
    if ablation.name == "base" and not (out / "beams.json").exists():
        captioner = captioner or Captioner.from_pretrained(out / "best.safetensors")
        config = protocol.config(ablation, seed)
        _, examples = read_examples(config.data, config.validation.limit)
        found = {beam: evaluate(captioner, examples, beam=beam) for beam in BEAMS}
        summaries = {str(beam): each.quality.scores.summary() for beam, each in found.items()}
        save(out / "beams.json", summaries)


def save(path: Path, values: dict[str, Any]) -> None:
    """Write figures as JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")


def attention_figures(captioner: Captioner, coco: Path, photos: int | None) -> dict[str, float]:
    """The maps against the masks of COCO's photos, as scripts/attention_figures.py has them."""
    instances, examples = outlined_photos(coco, photos)
    report = evaluate(captioner, examples, instances=instances, saliency=False, beam=3).attention
    assert report is not None
    return {key: report.figure(key) for key in ("ratio", "pointing_gain", "entropy")}


def write_page(protocol: Protocol, page: Path) -> None:
    """Put the tables of all finished runs into the page."""
    results: dict[str, dict[int, Result]] = {}
    for ablation in ABLATIONS:
        seeds = [seed for seed in protocol.seeds if protocol.done(ablation, seed)]
        results[ablation.name] = {
            seed: read_result(protocol.out(ablation.name, seed)) for seed in seeds
        }
    lines = []
    for ablation in ABLATIONS:
        if results[ablation.name]:
            against = results[ablation.against] if ablation.name != "base" else {}
            label = ablation.label
            if ablation.against != "base":
                label += f", against `{ablation.against}`"
            lines.append(Line(ablation.group, label, results[ablation.name], against))
    done, every = sum(map(len, results.values())), len(ABLATIONS) * len(protocol.seeds)
    settings = ", ".join(f"`{setting}`" for setting in protocol.settings)
    intro = (
        f"{done} of {every} runs are done (seeds {', '.join(map(str, protocol.seeds))}; "
        f"{settings}). In brackets: the lowest and the highest seed. Differences are those of "
        "CIDEr-D, seed by seed."
    )
    write_tables(page, intro, lines)
    print(f"{page}: {done} of {every} runs")


if __name__ == "__main__":
    main()
