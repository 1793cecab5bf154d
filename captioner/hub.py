"""Models by name: those at hand, and those of the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.checkpoint import describe
from captioner.errors import CaptionerError, CheckpointError, ConfigError

HUB = "hf-hub:"
WEIGHTS = Path(__file__).parent / "weights"
_ENDING = ".safetensors"
_EXPORT_ENDING = ".onnx.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model file or an export; `Captioner.from_pretrained(file.path)` loads it.

    Attributes:
        name: The file's name without its ending.
        path: The file.
        backend: What computes it: `torch` for a model file, `onnx` for an export.
        encoder: Name of its CNN.
        parameters: Number of its weights.
        size: Bytes of the file.
    """

    name: str
    path: Path
    backend: str
    encoder: str
    parameters: int
    size: int


def list_models(folder: str | os.PathLike[str] | None = None) -> list[ModelFile]:
    """List the model files and exports in a folder; without one, those of the package.

    Files of other programs, and damaged ones, are left out.
    """
    found = []
    for path in sorted(Path(WEIGHTS if folder is None else folder).glob(f"*{_ENDING}")):
        try:
            info = describe(path)
        except CheckpointError:
            continue
        found.append(
            ModelFile(
                name=path.name.removesuffix(_ENDING),
                path=path,
                backend="onnx" if "export" in info else "torch",
                encoder=info["config"]["encoder"]["name"],
                parameters=info["parameters"],
                size=info["bytes"],
            )
        )
    return found


def local_model(name: str | os.PathLike[str]) -> Path:
    """Return the path of a model; one of the hub is downloaded unless it is in the cache.

    Only .safetensors files are downloaded, which cannot run code: the model of the repository, and
    its export if there is one. Where the hub cannot be reached, the cache is used.

    Args:
        name: A path, or `hf-hub:owner/name` with an optional `@revision`: branch, tag or commit.

    Raises:
        ConfigError: The name is malformed, or the package huggingface-hub is not installed.
        CheckpointError: There is no such model, or it cannot be downloaded.
    """
    if not isinstance(name, str) or not name.startswith(HUB):
        return Path(name)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError:
        raise ConfigError(
            f"{name} needs the package huggingface-hub: pip install 'captioner[hub]'"
        ) from None
    repository, at, revision = name.removeprefix(HUB).partition("@")
    if repository.count("/") != 1 or bool(at) != bool(revision):
        raise ConfigError(f"{name}: a model of the hub is named hf-hub:owner/name[@revision]")
    revision = revision or "main"
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision)
        files = [
            huggingface_hub.hf_hub_download(repository, file, revision=revision)
            for file in _choose(name, [file.rfilename for file in info.siblings or []])
        ]
        return Path(files[0])
    except errors.HFValidationError as error:
        raise ConfigError(f"{name}: {error}") from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise CheckpointError(f"the hub has no {name}, or it is private") from None
    except CaptionerError:
        raise
    except Exception as error:  # errors of a connection differ between versions of the package
        cached = {path.name: path for path in _cached_files(repository, revision)}
        if not cached:
            raise CheckpointError(
                f"{name} is not in the cache, and the hub cannot be reached: {_first_line(error)}"
            ) from None
        return cached[_choose(name, list(cached))[0]]


def _cached_files(repository: str, revision: str) -> list[Path]:
    """List what was downloaded earlier of a revision: a branch, tag or commit."""
    import huggingface_hub
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = huggingface_hub.scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        file.file_path
        for cached in repositories
        if (cached.repo_id, cached.repo_type) == (repository, "model")
        for snapshot in cached.revisions
        if revision in (*snapshot.refs, snapshot.commit_hash)
        for file in snapshot.files
    ]


def _choose(name: str, files: Sequence[str]) -> list[str]:
    """Choose the model of a repository, and the export that belongs to it if there is one.

    Raises:
        CheckpointError: There is none, or there are several and none is called model.safetensors.
    """
    there = {file for file in files if file.endswith(_ENDING) and "/" not in file}
    models = sorted(file for file in there if not file.endswith(_EXPORT_ENDING)) or sorted(there)
    if not models:
        raise CheckpointError(f"{name} has no .safetensors file")
    if len(models) > 1 and "model.safetensors" not in models:
        raise CheckpointError(f"{name} has several models and no model.safetensors: {models}")
    model = models[0] if len(models) == 1 else "model.safetensors"
    export = model.removesuffix(_ENDING) + _EXPORT_ENDING
    return [model, export] if export in there and export != model else [model]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
