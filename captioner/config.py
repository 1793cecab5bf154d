"""Configuration: frozen dataclasses, read from YAML and overridden by `section.key=value`.

In keys that name files and folders, `~` and `$VARIABLE` are expanded.

Every key is a field below, with its default and its unit; a key that is not here is an error that
names the nearest one. The same classes travel in the checkpoint's header, so a model is always
rebuilt from exactly the configuration that trained it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from captioner.errors import ConfigError
from captioner.utils.settings import FilePath, Range, apply_override, from_dict, to_dict

__all__ = ["Config", "ModelConfig", "from_dict", "load_config", "to_dict"]

Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 0.99)]

AttentionKind = Literal["additive", "dot", "general", "scaled_dot", "multi_head"]
Normalizer = Literal["softmax", "sparsemax", "entmax15"]
GateKind = Literal["off", "scalar", "channel"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The CNN that turns an image into a grid of features."""

    name: str = "timm/tf_efficientnet_lite2"
    """`torchvision/NAME` or `timm/NAME`."""
    pretrained: bool = True
    """Start from ImageNet weights (only when training starts; a checkpoint brings its own)."""
    image_size: Count = 224
    """Side of the square that the whole image is resized to, in pixels."""
    strides: tuple[int, ...] = (16, 32)
    """Stages whose features are joined, named by their output stride (224/16 = a 14×14 grid)."""
    head: bool = False
    """Also run the convolution between the last stage and the classifier (timm's EfficientNets:
    1,280 channels that know what ImageNet names)."""
    grid: Count | None = None
    """Side of the grid; None takes that of the finest stage in `strides`."""
    width: Count | None = 512
    """Feature size D after projection; None hands on the raw features of a single stage."""
    refine_layers: CountOrZero = 0
    """Self-attention blocks that refine the grid before decoding."""
    refine_heads: Count = 8
    dropout: ShareBelowOne = 0.0
    """Share of the grid's channels that an image's captions do without in a training step (spatial
    dropout, Tompson et al. 2015): images are harder to learn by heart."""
    trainable_stages: CountOrZero = 0
    """How many of the last stages (1 = the coarsest stride) are fine-tuned; 0 freezes the CNN."""
    train_depthwise: bool = True
    """False leaves the depthwise kernels of the trainable stages frozen: they are a hundredth of
    the weights, and on a CPU their gradient takes two thirds of the CNN's backward pass."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """`frozen` keeps ImageNet's statistics even in stages that train."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """How the decoder looks at the grid."""

    kind: AttentionKind = "additive"
    mode: Literal["soft", "hard"] = "soft"
    """`hard` reads one location at a time, drawn in training and the likeliest afterwards."""
    size: Count = 512
    """Attention size A: width of keys and queries (of all heads together)."""
    heads: Count = 8
    """Only for `multi_head`."""
    normalizer: Normalizer = "softmax"
    """`sparsemax` and `entmax15` give exact zeros outside the attended region."""
    smooth: bool = False
    """Each cell shares half of its weight with its neighbours in either direction, so that a map
    is a region and not scattered cells; the context is read with the smoothed weights."""
    see_word: bool = False
    """The query also sees the previous word (the paper's query is the hidden state alone)."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The LSTM that writes the sentence."""

    embedding: Count = 512
    hidden: Count = 512
    gate: GateKind = "scalar"
    """The paper's β on the context: one number a step, one a channel, or none."""
    deep_output: bool = False
    """Eq. 7 of the paper: the word is read from h, the context and the previous word together."""
    tied: bool = False
    """Share the word embeddings with the output projection."""
    initial_state: Literal["mean", "zero"] = "mean"
    """`mean` starts the LSTM from the mean feature, as in the paper."""
    dropout: ShareBelowOne = 0.5


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network in full."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Images with captions: COCO JSON, Karpathy JSON or JSONL."""

    captions: FilePath
    more_captions: tuple[FilePath, ...] = ()
    """Further captions files. What they say of the images of the first is added to it; their other
    images are not used."""
    images: FilePath | None = None
    """Folder of the images; None looks beside each captions file."""
    split: str | None = None
    """Which split of the file; None takes all (COCO JSON has one split only)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how batches are made."""

    root: FilePath = "."
    """Folder that the captions and images below are relative to."""
    train: tuple[SourceConfig, ...] = ()
    val: tuple[SourceConfig, ...] = ()
    min_count: Count = 5
    """A word that occurs fewer times in the training captions becomes `<unk>`."""
    max_length: Count = 30
    """Words a caption; longer ones are cut."""
    batch_size: Count = 16
    """Images a step (each with `captions_per_image` captions), over all ranks together."""
    captions_per_image: Count = 5
    mirror: bool = True
    """Show mirrored images too (the words left and right change places)."""
    augment: bool = False
    """Random resized crop and colour jitter; needs images, so it switches the feature cache off
    unless there are `copies`."""
    copies: Count = 1
    """With `augment` and a frozen CNN: how many versions of each image the feature cache keeps
    (the image as it is, and augmented ones), of which every epoch draws one. 1 reads images."""
    cache: FilePath | None = "cache"
    """Folder for features of a frozen CNN; None computes them anew each time."""
    cache_dtype: Literal["fp16", "bf16"] = "fp16"
    """How they are kept: fp16 has three more bits of precision, bf16 the range of fp32."""
    workers: CountOrZero = 2
    """Processes that read images."""
    limit: Count | None = None
    """Use only the first N training images (for trials)."""
    texts: tuple[FilePath, ...] = ()
    """Files of sentences without images, one a line (gzipped if named `.gz`), that the decoder
    learns to write before it sees images, for `optim.text_epochs`. Their words count for the
    vocabulary."""
    embeddings: FilePath | None = None
    """File of word vectors (GloVe or word2vec, as text, or gzipped) that the word embeddings start
    from; not together with `init`."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised; see `training/losses.py` for the formulas."""

    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    """Imitate what people wrote, or (from a model that can already write) raise the CIDEr-D of
    what the model itself says."""
    draws: Annotated[int, Range(2)] = 5
    """Sentences drawn per image for `self_critical`."""
    baseline: Literal["others", "greedy"] = "others"
    """What a sampled sentence must beat: the mean of the image's other samples, or greedy."""
    cross_entropy: NotNegative = 0.0
    """Only for `self_critical`: weight of the cross-entropy of the references that is added to the
    reward's loss, so that the model does not forget words that few captions use."""
    teachers: tuple[FilePath, ...] = ()
    """Models of the same vocabulary whose mean word probabilities are imitated (distillation), in
    training by cross-entropy."""
    distillation: Share = 0.5
    """Share of the word loss that imitates `teachers` and not the references."""
    label_smoothing: ShareBelowOne = 0.1
    scheduled_sampling: Share = 0.0
    """Share of the words read that are drawn from the model instead of the true ones (Bengio et
    al. 2015), reached linearly at the last step."""
    coverage: NotNegative = 0.0
    """λ of the doubly stochastic penalty."""
    coverage_target: float | None = None
    """τ of the penalty; None takes T/L of each caption, the only value every cell can reach."""
    entropy: NotNegative = 0.0
    """Weight of the excess of the attention's mean entropy over `entropy_target`."""
    entropy_target: Share = 0.75
    """Share of the uniform map's entropy up to which maps are sharp enough (0.75 of log 196 is
    the entropy of 52 cells)."""
    exploration: NotNegative = 0.002
    """λ_e of hard attention: weight of its entropy, which is raised to keep it looking around."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How it is minimised."""

    epochs: Count = 12
    text_epochs: Count = 3
    """Epochs over `data.texts`, before the others."""
    learning_rate: NotNegative = 1e-3
    encoder_learning_rate: NotNegative = 1e-4
    """Peak rate of the CNN's trainable stages."""
    weight_decay: NotNegative = 0.01
    warmup: CountOrZero = 200
    """Steps of linear warm-up before the cosine."""
    clip: NotNegative = 1.0
    """Largest gradient norm; 0 switches clipping off."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.999
    """Decay of the averaged weights that are validated and saved; 0 switches averaging off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    accumulate: Count = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    cuda_graphs: bool = True
    """Run steps as CUDA graphs where it can be done: on one GPU, without hard attention."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Free-running validation: captions are generated, never teacher-forced."""

    every: Count = 1
    """Epochs between validations."""
    beam: Count = 3
    max_length: Count = 24
    metric: Literal["cider", "bleu4", "rouge_l"] = "cider"
    """What selects the best checkpoint."""
    limit: Count | None = None
    """Use only the first N validation images."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run tells about itself."""

    every: Count = 20
    """Steps between the records of the log."""
    samples: CountOrZero = 4
    """Validation images whose captions and attention are drawn after each validation."""
    tensorboard: bool = False
    """Write the records for TensorBoard as well (extra `tensorboard`)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run."""

    out: FilePath = "runs/captioner"
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    deterministic: bool = False
    """Give equal weights for equal seeds on a GPU too, which is slower."""
    init: FilePath | None = None
    """Checkpoint whose weights and vocabulary training starts from."""
    device: str = "auto"
    save_every: Count = 500
    """Steps between saved states; the last two are kept, and every epoch saves one too."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe and apply `section.key=value` overrides.

    The key's type decides how an override is read: text stays as it is, all else is YAML.

    Raises:
        ConfigError: The file is missing or not YAML, has a key twice, or a key or value is wrong.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
        twice = _find_duplicate(yaml.compose(text, yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, an impossible date
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, not {type(values).__name__}")
    if twice is not None:
        raise ConfigError(
            f"{path}, line {twice.start_mark.line + 1}: {twice.value!r} is there twice"
        )
    for override in overrides:
        apply_override(Config, values, override)
    return from_dict(Config, values)


def _find_duplicate(node: Any) -> Any:
    """Return the YAML node of a key that its section has twice, of which YAML takes the last."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        twice = (key for n, (key, _) in enumerate(node.value) if key.value in keys[:n])
        inner = (_find_duplicate(value) for _, value in node.value)
        return next(twice, None) or next(filter(None, inner), None)
    if isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(_find_duplicate, node.value)), None)
    return None
