"""Scripts of the repository as modules."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load_script(path):
    """The script of this path in the repository."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
