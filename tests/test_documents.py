"""Documents that are made by scripts are up to date, and examples run."""

import ast
import json
from pathlib import Path

import pytest
from helpers.scripts import ROOT, load_script
from PIL import Image

from captioner.api import DEFAULT_WEIGHTS
from captioner.backends.load import installed


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="no model ships with this copy")
def test_the_model_card_is_up_to_date():
    script = load_script("scripts/model_card.py")
    assert script.PAGE.read_text("utf-8") == script.page(), "run python scripts/model_card.py"


@pytest.mark.skipif(not installed(DEFAULT_WEIGHTS), reason="no model ships with this copy")
def test_the_notebook_runs(monkeypatch):
    """Cell by cell, as Jupyter would, and what it would show can be drawn."""
    monkeypatch.chdir(ROOT / "examples")
    names, shown = {}, []
    for cell in json.loads(Path("quickstart.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), "quickstart", "exec"), names)
        if last:
            shown.append(eval(compile(ast.Expression(last.value), "quickstart", "eval"), names))
    assert "<img" in shown[1]._repr_html_()  # the caption and its maps
    assert shown[2].size == Image.open("cat.jpg").size  # an overlay
