"""Killed with SIGKILL at random moments and resumed, a run writes what an uninterrupted one does.

The runs are those of the real command, each in a process of its own. To have dozens of them within
seconds they are forked from a server that has imported PyTorch and computed nothing yet.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers.tiny_files import environment, make_photos

PHOTOS = 24
DEADLINE = 60  # seconds, of what takes a fraction of one

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def serve():
    """Fork a `captioner` for each line of standard input; answer with its process and status."""
    import timm  # noqa: F401

    import captioner.api
    import captioner.batch.runner  # noqa: F401
    from captioner.cli import main as cli

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                os.chdir(request["folder"])
                for name in ("stdout", "stderr"):
                    handle = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                    os.dup2(handle, {"stdout": 1, "stderr": 2}[name])
                status = 3
                try:
                    status = cli.main(request["arguments"])
                    sys.stdout.flush()
                finally:
                    os._exit(status)
        print(json.dumps(answer), flush=True)


class Run:
    """A command under way."""

    def __init__(self, server, arguments):
        self._server = server
        self._said = Path(f"stderr-{random.getrandbits(40)}").absolute()
        self._said.touch()  # the process may be killed before it does so
        self.pid = self._ask(
            arguments=arguments, folder=os.getcwd(), stdout=os.devnull, stderr=str(self._said)
        )

    def _ask(self, **request):
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def alive(self):
        """Not ended: an ended process stays a zombie until it is waited for."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"

    def wait(self):
        """Its exit status and standard error."""
        status = self._ask(wait=self.pid)
        return status, self._said.read_text()

    def wait_for_size(self, path, size):
        """Until the file has so many bytes or the run is over."""
        deadline = time.monotonic() + DEADLINE
        while self.alive() and not (path.exists() and path.stat().st_size >= size):
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture(scope="module")
def server():
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    variables = environment()
    tests = str(Path(__file__).parents[1])  # where this file, run as a program, finds its helpers
    variables["PYTHONPATH"] += os.pathsep + tests
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    )
    yield process
    process.communicate()


@pytest.fixture
def start(server, model, tmp_path, monkeypatch):
    """Start `captioner caption photos ...` in a folder of 24 photos, one of which is none."""
    make_photos(tmp_path / "photos", PHOTOS)
    (tmp_path / "photos" / "07.png").write_bytes(b"nonsense")
    monkeypatch.chdir(tmp_path)

    def call(output, *options, source="photos"):
        arguments = ["caption", source, "--model", str(model), "--batch-size", "2"]
        output = ["-o", output] if output else []
        return Run(server, [*arguments, *output, *options])

    return call


SLOWLY = [
    pytest.param(name, source, 20, marks=pytest.mark.slow)
    for name in ("out.jsonl", "out.csv", "out.json", "out.parquet")
    for source in ("photos", "photos.tar")
]


@pytest.mark.parametrize(
    ("name", "source", "most"),
    [
        ("out.jsonl", "photos", 4),
        pytest.param("out.csv", "photos", 4, marks=pytest.mark.slow),
        pytest.param("out.json", "photos", 4, marks=pytest.mark.slow),
        ("out.parquet", "photos", 4),
        pytest.param("out.jsonl", "photos.tar", 4, marks=pytest.mark.slow),
        *SLOWLY,
    ],
)
def test_kills_at_random_moments(start, name, source, most):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    with tarfile.open("photos.tar", "w") as archive:  # with links, which are read in a second pass
        for path in sorted(Path("photos").iterdir()):
            archive.add(path)
        for number in range(4):
            link = tarfile.TarInfo(f"photos/link-{number}.png")
            link.type, link.linkname = tarfile.SYMTYPE, f"{2 * number:02}.png"
            archive.addfile(link)
    rng = random.Random(name)
    assert start(f"whole-{name}", "--errors", "whole.errors", source=source).wait()[0] == 1
    whole, errors = Path(f"whole-{name}").read_bytes(), Path("whole.errors").read_bytes()
    made_at_the_end = name in ("out.json", "out.parquet")
    rows = Path(f"{name}.partial" if made_at_the_end else name)
    kills = finished = 0
    sizes = set()
    while kills < most or not finished or rows.exists():
        # Also when there is nothing yet.
        run = start(name, "--errors", "errors.jsonl", "--resume", source=source)
        if kills < most:
            done = rows.stat().st_size if rows.exists() else 0
            if rng.random() < 0.8:  # anywhere in what is left, else while it starts
                run.wait_for_size(rows, rng.uniform(done, max(done + 1, 0.95 * len(whole))))
            time.sleep(rng.uniform(0, 0.03))
            if run.alive():
                os.kill(run.pid, signal.SIGKILL)
        status, said = run.wait()
        if status == -signal.SIGKILL:
            kills += 1
            if made_at_the_end and Path(name).exists():
                assert Path(name).read_bytes() == whole  # it appears whole or not at all
                Path(name).unlink()
            if rows.exists():
                data = rows.read_bytes()
                sizes.add(len(data))
                if not made_at_the_end:
                    assert whole.startswith(data)
                if rng.random() < 0.5:  # as after a power cut, which a process cannot act
                    rows.write_bytes(data[: -rng.randrange(1, 60)])
            continue
        assert status == 1, said
        assert Path(name).read_bytes() == whole
        assert Path("errors.jsonl").read_bytes() == errors
        finished += 1
        Path(name).unlink()
    assert len(sizes) >= most // 4  # they did die at different places


@pytest.mark.parametrize("most", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_of_a_run_that_writes_sidecars(start, most):
    """Each is there whole or not at all, and one that failed fails again."""

    def sidecars():
        return {path.name: path.read_bytes() for path in Path("photos").glob("*.txt")}

    def remove():
        for path in Path("photos").glob("*.txt"):
            path.unlink()

    rng = random.Random(most)
    options = ("--format", "sidecar", "--resume")
    assert start(None, *options).wait()[0] == 1
    whole = sidecars()
    assert len(whole) == PHOTOS - 1
    remove()
    kills = finished = 0
    while kills < most or not finished:
        run = start(None, *options)
        if kills < most:
            deadline = time.monotonic() + DEADLINE
            until = rng.randrange(len(sidecars()), PHOTOS)
            while run.alive() and len(sidecars()) < until:
                assert time.monotonic() < deadline
            time.sleep(rng.uniform(0, 0.01))
            if run.alive():
                os.kill(run.pid, signal.SIGKILL)
        status, said = run.wait()
        if status == -signal.SIGKILL:
            kills += 1
            assert sidecars().items() <= whole.items()
            continue
        assert status == 1, said
        assert "1 failed" in said
        assert sidecars() == whole
        finished += 1
        remove()


def test_a_second_process_is_refused_until_the_first_is_dead(start):
    output = Path("out.jsonl")
    assert start("whole.jsonl").wait()[0] == 1
    first = start("out.jsonl")
    first.wait_for_size(output, 1000)
    os.kill(first.pid, signal.SIGSTOP)
    before = output.read_bytes()
    for mode in ("--resume", "--overwrite"):
        status, said = start("out.jsonl", mode).wait()
        assert status == 2
        assert said == f"captioner: error: another captioner is writing to {output}\n"
    assert output.read_bytes() == before
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait()[0] == -signal.SIGKILL
    assert start("out.jsonl", "--resume").wait()[0] == 1
    assert output.read_bytes() == Path("whole.jsonl").read_bytes()


if __name__ == "__main__":
    serve()
