"""Configuration: frozen dataclasses, read from YAML and overridden by ``section.key=value``.

In keys that name files and folders, ``~`` and ``$VARIABLE`` are expanded.

Every key is a field below, with its default and its unit; a key that is not here is an error that
names the nearest one. The same classes travel in the checkpoint's header, so a model is always
rebuilt from exactly the configuration that trained it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from captioner.errors import ConfigError

AttentionKind = Literal["additive", "dot", "general", "scaled_dot", "multi_head"]
Normalizer = Literal["softmax", "sparsemax", "entmax15"]
GateKind = Literal["off", "scalar", "channel"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The CNN that turns a photo into a grid of features."""

    name: str = "timm/tf_efficientnet_lite2"
    """``torchvision/NAME`` or ``timm/NAME``."""
    pretrained: bool = True
    """Start from ImageNet weights (only when training starts; a checkpoint brings its own)."""
    image_size: int = 224
    """Side of the square that the whole photo is resized to, in pixels."""
    strides: tuple[int, ...] = (16, 32)
    """Stages whose features are joined, named by their output stride (224/16 = a 14×14 grid)."""
    head: bool = False
    """Also run the convolution between the last stage and the classifier (timm's EfficientNets:
    1,280 channels that know what ImageNet names)."""
    grid: int | None = None
    """Side of the grid; None takes that of the finest stage in ``strides``."""
    width: int | None = 512
    """Feature size D after projection; None hands on the raw features of a single stage."""
    refine_layers: int = 0
    """Self-attention blocks that refine the grid before decoding."""
    refine_heads: int = 8
    dropout: float = 0.0
    """Share of the grid's channels that a photo's captions do without in a training step (spatial
    dropout, Tompson et al. 2015): photos are harder to learn by heart."""
    trainable_stages: int = 0
    """How many of the last stages (1 = the coarsest stride) are fine-tuned; 0 freezes the CNN."""
    train_depthwise: bool = True
    """False leaves the depthwise kernels of the trainable stages frozen: they are a hundredth of
    the weights, and on a CPU their gradient takes two thirds of the CNN's backward pass."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """``frozen`` keeps ImageNet's statistics even in stages that train."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How the decoder looks at the grid."""

    kind: AttentionKind = "additive"
    mode: Literal["soft", "hard"] = "soft"
    """``hard`` reads one location at a time, drawn in training and the likeliest afterwards."""
    size: int = 512
    """Attention size A: width of keys and queries (of all heads together)."""
    heads: int = 8
    """Only for ``multi_head``."""
    normalizer: Normalizer = "softmax"
    """``sparsemax`` and ``entmax15`` give exact zeros outside the attended region."""
    smooth: bool = False
    """Each cell shares half of its weight with its neighbours in either direction, so that a map
    is a region and not scattered cells; the context is read with the smoothed weights."""
    see_word: bool = False
    """The query also sees the previous word (the paper's query is the hidden state alone)."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The LSTM that writes the sentence."""

    embedding: int = 512
    hidden: int = 512
    gate: GateKind = "scalar"
    """The paper's β on the context: one number a step, one a channel, or none."""
    deep_output: bool = False
    """Eq. 7 of the paper: the word is read from h, the context and the previous word together."""
    tied: bool = False
    """Share the word embeddings with the output projection."""
    initial_state: Literal["mean", "zero"] = "mean"
    """``mean`` starts the LSTM from the mean feature, as in the paper."""
    dropout: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network in full."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One captions file: COCO JSON, Karpathy JSON or JSONL."""

    captions: str
    images: str | None = None
    """Folder of the photos; None looks beside the captions file."""
    split: str | None = None
    """Which split of the file; None takes all (COCO JSON has one split only)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how batches are made."""

    root: str = "."
    """Folder that the captions and images below are relative to."""
    train: tuple[SourceConfig, ...] = ()
    val: tuple[SourceConfig, ...] = ()
    min_count: int = 5
    """A word that occurs fewer times in the training captions becomes ``<unk>``."""
    max_length: int = 30
    """Words a caption; longer ones are cut."""
    batch_size: int = 16
    """Photos a step (each with ``captions_per_image`` captions), over all ranks together."""
    captions_per_image: int = 5
    mirror: bool = True
    """Show mirrored photos too (the words left and right change places)."""
    augment: bool = False
    """Random resized crop and colour jitter; needs photos, so it switches the feature cache off
    unless there are ``copies``."""
    copies: int = 1
    """With ``augment`` and a frozen CNN: how many versions of each photo the feature cache keeps
    (the photo as it is, and augmented ones), of which every epoch draws one. 1 reads photos."""
    cache: str | None = "cache"
    """Folder for features of a frozen CNN; None computes them anew each time."""
    cache_dtype: Literal["fp16", "bf16"] = "fp16"
    """How they are kept: fp16 has three more bits of precision, bf16 the range of fp32."""
    workers: int = 2
    """Processes that read photos."""
    limit: int | None = None
    """Use only the first N training photos (for trials)."""
    embeddings: str | None = None
    """File of word vectors (GloVe or word2vec, as text, or gzipped) that the word embeddings start
    from; not together with ``init``."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised; see ``training/losses.py`` for the formulas."""

    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    """Imitate what people wrote, or (from a model that can already write) raise the CIDEr-D of
    what the model itself says."""
    draws: int = 5
    """Sentences drawn per photo for ``self_critical``."""
    baseline: Literal["others", "greedy"] = "others"
    """What a sampled sentence must beat: the mean of the photo's other samples, or greedy."""
    label_smoothing: float = 0.1
    scheduled_sampling: float = 0.0
    """Share of the words read that are drawn from the model instead of the true ones (Bengio et
    al. 2015), reached linearly at the last step."""
    coverage: float = 0.0
    """λ of the doubly stochastic penalty."""
    coverage_target: float | None = None
    """τ of the penalty; None takes T/L of each caption, the only value every cell can reach."""
    entropy: float = 0.0
    """Weight of the excess of the attention's mean entropy over ``entropy_target``."""
    entropy_target: float = 0.75
    """Share of the uniform map's entropy up to which maps are sharp enough (0.75 of log 196 is
    the entropy of 52 cells)."""
    exploration: float = 0.002
    """λ_e of hard attention: weight of its entropy, which is raised to keep it looking around."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How it is minimised."""

    epochs: int = 12
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-4
    """Peak rate of the CNN's trainable stages."""
    weight_decay: float = 0.01
    warmup: int = 200
    """Steps of linear warm-up before the cosine."""
    clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    ema: float = 0.999
    """Decay of the averaged weights that are validated and saved; 0 switches averaging off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Free-running validation: captions are generated, never teacher-forced."""

    every: int = 1
    """Epochs between validations."""
    beam: int = 3
    max_length: int = 24
    metric: Literal["cider", "bleu4", "rouge_l"] = "cider"
    """What selects the best checkpoint."""
    limit: int | None = None
    """Use only the first N validation photos."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run tells about itself."""

    every: int = 20
    """Steps between the records of the log."""
    samples: int = 4
    """Validation photos whose captions and attention are drawn after each validation."""
    tensorboard: bool = False
    """Write the records for TensorBoard as well (extra ``tensorboard``)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run."""

    out: str = "runs/captioner"
    seed: int = 0
    init: str | None = None
    """Checkpoint whose weights and vocabulary training starts from."""
    device: str = "auto"
    save_every: int = 500
    """Steps between saved states; the last two are kept, and every epoch saves one too."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)


T = TypeVar("T")

_INFINITY = float("inf")
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("image_size", "grid", "width", "refine_heads", "size", "heads", "embedding", "hidden"),
        (1, _INFINITY),
    ),
    **dict.fromkeys(
        ("min_count", "max_length", "batch_size", "captions_per_image", "limit"), (1, _INFINITY)
    ),
    **dict.fromkeys(("epochs", "every", "beam", "accumulate", "save_every"), (1, _INFINITY)),
    "draws": (2, _INFINITY),
    "copies": (1, _INFINITY),
    **dict.fromkeys(("refine_layers", "trainable_stages", "workers"), (0, _INFINITY)),
    "seed": (0, 2**63 - 1),
    "samples": (0, _INFINITY),
    **dict.fromkeys(
        ("coverage", "entropy", "exploration", "weight_decay", "warmup"), (0, _INFINITY)
    ),
    **dict.fromkeys(("learning_rate", "encoder_learning_rate", "clip"), (0, _INFINITY)),
    **dict.fromkeys(("dropout", "label_smoothing"), (0, 0.99)),
    "scheduled_sampling": (0, 1),
    "entropy_target": (0, 1),
    "ema": (0, 0.999999),
}
"""Smallest and largest value of a key, by its last name."""


_PATH_KEYS = {"out", "init", "root", "cache", "embeddings", "captions", "images"}


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain dicts, lists and scalars, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a configuration dataclass from plain values, checking every key and type.

    Args:
        cls: One of the dataclasses of this module.
        values: Plain nested values, as YAML or JSON give them.
        where: Dotted path of ``values``, for messages.

    Raises:
        ConfigError: An unknown key, a missing one, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where or 'the configuration'} must be a section of keys, got {values!r}"
        )
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"unknown key {_join(where, key)!r}; {hint}")
    made = {k: _convert(hints[k], v, _join(where, k)) for k, v in values.items()}
    for key, value in made.items():
        if key in _PATH_KEYS and isinstance(value, str):
            made[key] = _expand_path(value, _join(where, key))
        _check_range(key, value, _join(where, key))
    try:
        return cls(**made)
    except TypeError as error:  # a required key is absent
        raise ConfigError(f"{where or 'the configuration'}: {error}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe and apply ``section.key=value`` overrides.

    The key's type decides how an override is read: text stays as it is, all else is YAML.

    Raises:
        ConfigError: The file is missing or not YAML, or a key or value is wrong.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, an impossible date
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, not {type(values).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} must look like optim.learning_rate=1e-3")
        node = values
        *parents, last = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is not a section")
            node = child
        try:
            node[last] = _override_value(_key_type(key), text)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    return from_dict(Config, values)


def _key_type(key: str) -> Any:
    """Return the type of a dotted key of `Config`; None if there is no such key."""
    hint: Any = Config
    for name in key.split("."):
        if typing.get_origin(hint) is tuple:
            (hint, *_) = typing.get_args(hint)
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def _override_value(hint: Any, text: str) -> Any:
    """Read the text of an override as a plain value of its key's type.

    Raises:
        yaml.YAMLError: The key does not hold text, and the value is not YAML.
    """
    import yaml

    if typing.get_origin(hint) in (Union, types.UnionType):
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        (hint,) = [a for a in typing.get_args(hint) if a is not type(None)]
    if hint is str or (typing.get_origin(hint) is Literal and text in typing.get_args(hint)):
        return text  # YAML would cut "runs/exp #3" at the comment and read 001 as a number
    *_, last, _end = yaml.scan(text)
    if last.end_mark.index < len(text.rstrip()):  # YAML would ignore a comment
        return text
    return yaml.safe_load(text)


def _expand_path(path: str, where: str) -> str:
    """Replace a leading `~` and environment variables in a path.

    Raises:
        ConfigError: There is no such variable or home directory.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset and unset[0] in path:
        raise ConfigError(f"{where}={path}: the environment variable {unset[0]} is not set")
    if expanded.startswith("~"):
        raise ConfigError(
            f"{where}={path}: {path.split('/')[0]} is no home directory; write ./{path} for a "
            "folder of that name"
        )
    return expanded


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check ``value`` against a type hint; ints pass as floats, YAML's '1e-3' too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [a for a in arguments if a is not type(None)]
        return _convert(inner, value, where)
    if origin is Literal:
        # YAML reads a bare `off` as False.
        value = "off" if value is False and "off" in arguments else value
        if value not in arguments:
            raise ConfigError(
                f"{where} must be one of {', '.join(map(str, arguments))}; got {value!r}"
            )
        return value
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {hint.__name__}; got {value!r}")


def _check_range(name: str, value: Any, where: str) -> None:
    low, high = _RANGES.get(name, (-_INFINITY, _INFINITY))
    if isinstance(value, (int, float)) and not low <= value <= high:
        limits = f"at least {low:g}" if high == _INFINITY else f"from {low:g} to {high:g}"
        raise ConfigError(f"{where} must be {limits}; got {value!r}")
