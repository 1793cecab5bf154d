"""Load the demo with many visitors at once; report errors, waiting times and memory.

    python benchmarks/demo.py --clients 20 --seconds 60

Each client acts as the page does: it uploads a new image, waits for its caption, and starts a new
session every fifth time. Every tenth visit uses an endpoint for programs instead. The server is a
process of its own, started by the command line; its memory is read from /proc (Linux alone).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
from photos import made_up_photo

MARK = {"_type": "gradio.FileData"}


class Client:
    """Visitors one after the other, each with a session of the server and `stay` images."""

    def __init__(self, address, seed, stay=5):
        self.stay = stay
        self.http = httpx.Client(base_url=address, timeout=120)
        self.rng = np.random.default_rng(seed)
        config = self.http.get("config").json()
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        ids = {each["props"].get("elem_id"): each["id"] for each in config["components"]}
        (self.event,) = (
            each for each in config["dependencies"] if each["targets"] == [[ids["photo"], "change"]]
        )
        self.settings = [values[number] for number in self.event["inputs"][1:]]
        self.session = uuid.uuid4().hex
        self.seconds, self.errors, self.visits = [], [], 0

    def work(self, until):
        """Visit until a time of `time.monotonic`."""
        while time.monotonic() < until:
            if self.visits % self.stay == 0:
                self.session = uuid.uuid4().hex
            self.visits += 1
            start = time.monotonic()
            try:
                photo = self.upload()
                if self.visits % 10:
                    self.caption(photo)
                else:
                    self.call(photo)
            except Exception as error:
                self.errors.append(repr(error)[:300])
            self.seconds.append(time.monotonic() - start)

    def upload(self):
        """Upload a new image."""
        files = {"files": ("photo.jpg", made_up_photo(self.rng))}
        answer = self.http.post("gradio_api/upload", files=files)
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": "photo.jpg", "meta": MARK}

    def caption(self, photo):
        """Do what the page does when an image is dropped."""
        join = {
            "data": [photo, *self.settings],
            "fn_index": self.event["id"],
            "session_hash": self.session,
        }
        self.http.post("gradio_api/queue/join", json=join).raise_for_status()
        where = {"session_hash": self.session}
        with self.http.stream("GET", "gradio_api/queue/data", params=where) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    if not message["success"] or "sentences" not in message["output"]["data"][0]:
                        raise RuntimeError(str(message["output"])[:200])
                    return
        raise RuntimeError("no answer")

    def call(self, photo):
        """Do what a program does."""
        call = "gradio_api/call/caption"
        answer = self.http.post(call, json={"data": [photo, "", 1, 3, False]})
        answer.raise_for_status()
        text = self.http.get(f"{call}/{answer.json()['event_id']}").text
        if "event: complete" not in text:
            raise RuntimeError(text[:200])


def memory(pid):
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("-m", "--model", help="default: the shipped model")
    arguments = parser.parse_args()

    command = [sys.executable, "-m", "captioner", "demo"]
    command += ["-m", arguments.model] if arguments.model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0]
            clients = [Client(address, seed) for seed in range(arguments.clients)]
            rows = watch(server.pid, clients, arguments.seconds)
        finally:
            server.terminate()
    report(clients, rows, arguments.seconds)
    return 1 if any(client.errors for client in clients) else 0


def watch(pid, clients, seconds):
    """Let all clients work at once; return (time, memory) for each second."""
    rows = [(0.0, memory(pid))]
    start = time.monotonic()
    threads = [threading.Thread(target=each.work, args=(start + seconds,)) for each in clients]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(1)
        rows.append((time.monotonic() - start, memory(pid)))
    return rows


def report(clients, rows, seconds):
    """Print what happened."""
    times = sorted(value for client in clients for value in client.seconds)
    errors = [error for client in clients for error in client.errors]
    cuts = statistics.quantiles(times, n=20)
    after_ten = next((value for at, value in rows if at >= 10), rows[-1][1])
    print(f"{len(clients)} clients, {seconds:.0f} s: {len(times)} visits, {len(errors)} errors")
    print(f"visits per second   {len(times) / rows[-1][0]:.1f}")
    print(f"seconds a visit     p50 {cuts[9]:.2f}, p95 {cuts[18]:.2f}, longest {times[-1]:.2f}")
    print(
        f"server's memory     {rows[0][1]:.0f} MB before, {after_ten:.0f} after 10 s, "
        f"{max(value for _, value in rows):.0f} at most, {rows[-1][1]:.0f} at the end "
        f"({rows[-1][1] - rows[0][1]:+.0f})"
    )
    for error in sorted(set(errors))[:5]:
        print(f"  {errors.count(error)} × {error}")


if __name__ == "__main__":
    sys.exit(main())
