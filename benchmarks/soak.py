"""Memory after many captions and many visits of the demo: flat after the first few hundred.

    python benchmarks/soak.py --captions 2000 --visits 500 --backend onnx

Captions made-up photos in this process, one call after the other, then lets two clients visit a
demo server (see `demo.py`). Prints resident memory (Linux alone) along the way, and how much it
grew after the first 300.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
from photos import made_up_photo

from demo import Client, memory

SETTLED = 300  # captions or visits until caches are full


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=2000)
    parser.add_argument("--visits", type=int, default=500)
    parser.add_argument("--backend", default="auto", choices=("auto", "torch", "onnx"))
    arguments = parser.parse_args()
    report("captions", caption(arguments.captions, arguments.backend))
    command = [sys.executable, "-m", "captioner", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            report("visits", visit(address, server.pid, arguments.visits))
        finally:
            server.terminate()


def caption(count, backend):
    """Caption one photo after the other; yield (number, memory in MB)."""
    from captioner import Captioner

    captioner = Captioner.from_pretrained(backend=backend)
    rng = np.random.default_rng(0)
    for number in range(count + 1):
        yield number, memory(os.getpid())
        captioner(made_up_photo(rng))


def visit(address, pid, count):
    """Let two clients visit; yield (number of visits, memory of the server in MB).

    Every visit is a session of its own. The server remembers the last 200 and the messages of twice
    as many, so its memory grows until there are as many; it was level from 900 visits on.
    """
    clients = [Client(address, seed, stay=1) for seed in range(2)]
    until = time.monotonic() + 3600
    threads = [threading.Thread(target=each.work, args=(until,), daemon=True) for each in clients]
    for thread in threads:
        thread.start()
    done = 0
    while done < count:
        time.sleep(0.2)
        done = sum(len(client.seconds) for client in clients)
        yield done, memory(pid)
    if errors := [error for client in clients for error in client.errors]:
        print(f"  {len(errors)} errors, such as {errors[0]}")


def report(what, rows):
    """Print every 100th row, and the growth after the first `SETTLED`."""
    settled, due, now = None, 0, 0.0
    for number, now in rows:
        if number >= due:
            print(f"{number:6,} {what}: {now:.0f} MB", flush=True)
            due = number - number % 100 + 100
        if settled is None and number >= SETTLED:
            settled = now
    if settled is not None:
        print(f"after the first {SETTLED} {what}: {now - settled:+.1f} MB", flush=True)


if __name__ == "__main__":
    main()
