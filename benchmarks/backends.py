"""Compare ONNX Runtime and OpenVINO on an export: load time, encoder, step, memory, size.

    python benchmarks/backends.py [EXPORT] [--images 16] [--rows 3] [--repeats 9]
    python benchmarks/backends.py --profile     # where ONNX Runtime's time of a step goes

Each runtime computes with one thread; the repeats of both take turns, and the least processor time
of each is reported, so that another process on the machine disturbs little. Load time and memory
are those of a fresh process that encodes one image and takes one step (memory on Linux only).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from captioner.backends.onnx import ENCODER_OUTPUTS, STEP_OUTPUTS

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
RUNTIMES = ("onnxruntime", "openvino")
SHIPPED = Path(__file__).parents[1] / "captioner" / "weights" / "default.onnx.safetensors"


def start(runtime: str, graph: bytes, outputs: tuple[str, ...]) -> Run:
    """Load a graph into a runtime, for one thread."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda feed: session.run(outputs, feed)
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    model = core.compile_model(core.read_model(graph, b""), "CPU", settings)
    request = model.create_infer_request()

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        result = request.infer(feed, share_inputs=True)
        return [np.array(result[name]) for name in outputs]

    return run


def load(runtime: str, path: Path) -> tuple[Run, Run]:
    """Load the encoder and the step of an export."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        graphs = [file.get_tensor(name).tobytes() for name in ("encoder", "step")]
    encoder, step = graphs
    return start(runtime, encoder, ENCODER_OUTPUTS), start(runtime, step, STEP_OUTPUTS)


def feeds(encoder: Run, images: int, rows: int, size: int) -> list[dict[str, np.ndarray]]:
    """Random images, and a step's inputs for them."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    values, keys, hidden, cell = encoder({"pixels": pixels})
    state = [np.repeat(x[:, None], rows, 1) for x in (hidden, cell)]
    words = rng.integers(4, 1000, (images, rows))
    step = {"words": words, "hidden": state[0], "cell": state[1], "values": values, "keys": keys}
    return [{"pixels": pixels}, step]


def profile(path: Path, images: int, rows: int, size: int, repeats: int) -> None:
    """Print the share of each operator in the time of a step."""
    import onnxruntime
    from safetensors import safe_open

    encoder, _ = load("onnxruntime", path)
    with safe_open(path, framework="numpy") as file:
        graph = file.get_tensor("step").tobytes()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "step"))
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        feed = feeds(encoder, images, rows, size)[1]
        for _ in range(repeats + 1):
            session.run(STEP_OUTPUTS, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Counter[str] = Counter()
    for event in events:
        name, _, kind = event["name"].rpartition("_kernel_")
        if kind == "time":
            times[name] += event["dur"]
    for name, time_ in times.most_common(12):
        print(f"{time_ / times.total():6.1%}  {name}")


def processor_time(run: Run, feed: dict[str, np.ndarray]) -> float:
    before = time.process_time()
    run(feed)
    return time.process_time() - before


def fresh_process(runtime: str, path: Path, size: int) -> dict[str, float]:
    """Import, load and first results in a process of its own."""
    code = (
        "import runpy, sys; "
        f"runpy.run_path({__file__!r})['first_result']({runtime!r}, {str(path)!r}, {size})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(result.stdout)
    return found


def first_result(runtime: str, path: str, size: int) -> None:
    start_time = time.process_time()
    __import__(runtime)
    imported = time.process_time()
    encoder, step = load(runtime, Path(path))
    loaded = time.process_time()
    step(feeds(encoder, 1, 1, size)[1])
    done = time.process_time()
    # Not getrusage: its peak starts from that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    times = {
        "import_s": imported - start_time,
        "load_s": loaded - imported,
        "first_s": done - loaded,
        "peak_mb": peak,
    }
    print(json.dumps(times))


def installed_mb(package: str) -> float:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    (folder,) = spec.submodule_search_locations or [""]
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("export", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    from captioner.checkpoint import read_header

    size = read_header(arguments.export).preprocess.size
    if arguments.profile:
        profile(arguments.export, arguments.images, arguments.rows, size, arguments.repeats)
        return
    runs = {runtime: load(runtime, arguments.export) for runtime in RUNTIMES}
    inputs = feeds(runs["onnxruntime"][0], arguments.images, arguments.rows, size)
    best: dict[tuple[str, int], float] = {}
    for _ in range(arguments.repeats + 1):  # the first is slower
        for runtime, pair in runs.items():
            for part, (run, feed) in enumerate(zip(pair, inputs, strict=True)):
                took = processor_time(run, feed) / arguments.images * 1e3
                best[runtime, part] = min(took, best.get((runtime, part), took))
    for runtime in RUNTIMES:
        result = {
            "runtime": runtime,
            "encoder_ms_per_image": round(best[runtime, 0], 2),
            "step_ms_per_image": round(best[runtime, 1], 3),
            "installed_mb": round(installed_mb(runtime)),
        }
        times = [fresh_process(runtime, arguments.export, size) for _ in range(3)]
        result |= {key: round(min(each[key] for each in times), 2) for key in times[0]}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
