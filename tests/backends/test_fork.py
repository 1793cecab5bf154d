"""A forked process captions like its parent, which has captioned (gunicorn, Celery, Pool)."""

import os
import subprocess
import sys

import pytest
from helpers.tiny_files import environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CHILDREN = """
import multiprocessing, os, sys, threading
import numpy as np
from captioner import Captioner
from captioner.errors import CaptionerError

path, backend = sys.argv[1:]
captioner = Captioner.from_pretrained(path, backend=backend)
images = list(np.random.default_rng(0).integers(0, 256, (4, 300, 300, 3), dtype=np.uint8))

def captions(count=4):
    found = captioner.stream(images[:count], batch_size=2)
    return [caption.text for caption in found]

def in_a_thread(queue):
    thread = threading.Thread(target=lambda: queue.put(captions()))
    thread.start()
    thread.join()

def once_more(queue):  # a child of the child
    queue.put(captions())
    grandchild = context.Process(target=lambda: queue.put(captions()))
    grandchild.start()
    grandchild.join()

def on_a_gpu(queue):
    import torch
    captioner.backend.device = torch.device("cuda")
    try:
        captions()
    except CaptionerError as error:
        queue.put(str(error))

context = multiprocessing.get_context("fork")

def in_child(work, answers=1):
    queue = context.SimpleQueue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    found = [queue.get() for _ in range(answers)]
    process.join()
    return found

expected = captions()
assert in_child(lambda queue: queue.put(captions(1))) == [expected[:1]]
assert in_child(in_a_thread) == [expected]
assert in_child(once_more, answers=2) == [expected] * 2
if backend == "torch":
    (message,) = in_child(on_a_gpu)
    assert "load it after the fork" in message
assert captions() == expected
child = os.fork()
if child:
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
# The child ends as a program does, freeing what it has.
"""


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.slow), "onnx"])
def test_children_caption(model, tmp_path, backend):
    path = model
    if backend == "onnx":
        pytest.importorskip("onnx")
        from captioner.backends.export import export_file

        path = tmp_path / "tiny.onnx.safetensors"
        export_file(model, path)
    run = subprocess.run(
        [sys.executable, "-c", CHILDREN, str(path), backend],
        env={**environment(), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("status 0\n")
