"""What type checkers and editors know of the package (`py.typed`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
from typing_extensions import assert_type

from captioner import Caption, Captioner, Failure, ModelFile, list_models

assert_type(list_models(), list[ModelFile])
captioner = Captioner.from_pretrained(device="cpu")
assert_type(captioner("a.jpg"), Caption)
assert_type(captioner(["a.jpg", b"data"], beam=5), list[Caption])
for result in captioner.stream(["a.jpg"], batch_size=8):
    assert_type(result, Caption | Failure)
    print(result.error if isinstance(result, Failure) else result.words[0].upper())
assert_type(captioner.score("a.jpg", "a dog").total, float)
"""
WRONG = """\
from captioner import Captioner, DecodingOptions

captioner = Captioner.from_pretrained(backend="tensorflow")
captioner("a.jpg").title
DecodingOptions(beams=3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("program", "wrong_lines"), [(PROGRAM, set()), (WRONG, {3, 4, 5})])
def test_mypy_knows_the_types(tmp_path, program, wrong_lines):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(program)
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"]
    command += ["--cache-dir", f"{root}/.mypy_cache/user", "--python-version", "3.10"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": root}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("user.py:")]
    assert {int(line.split(":")[1]) for line in lines} == wrong_lines, done.stdout + done.stderr
    assert done.returncode == (1 if wrong_lines else 0), done.stdout + done.stderr
