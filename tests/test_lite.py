"""The light distribution holds all of the package but what only PyTorch reads."""

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).parents[1]


def test_every_file_of_the_package_is_listed():
    project = tomllib.loads((ROOT / "lite" / "pyproject.toml").read_text("utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all(source == f"../{target}" for source, target in included.items())
    listed = {target.removeprefix("captioner/") for target in included.values()}
    there = {path.name for path in (ROOT / "captioner").iterdir()} - {"__pycache__", "weights"}
    assert listed == there | {"weights/default.onnx.safetensors"}


def test_its_dependencies_are_a_part_of_the_full_ones():
    def names(path):
        project = tomllib.loads(path.read_text("utf-8"))["project"]
        return set(project["dependencies"])

    assert names(ROOT / "lite" / "pyproject.toml") <= names(ROOT / "pyproject.toml")
