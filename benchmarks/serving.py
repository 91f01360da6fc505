"""Load on `glip-adapt serve`: requests per second, waiting times, and memory over many requests.

    python benchmarks/serving.py                # writes results/serving.json and results/serving.png
    python benchmarks/serving.py --draw         # the figure and the table of what is there

The service runs in a process of its own, on loopback, with a prompt adapter of glip-nano on the CPU; each client is a
thread that sends its next picture when it has the answer to the last. No picture is sent twice, so that nothing comes
from the cache of features. Rates are those of JPEG files of 320 × 240 pixels in the view of the trunk. On a machine
with other work, the CPU time of the service tells more than seconds. Memory is followed with small pictures, from when
the cache of features is full.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from rich.progress import track

from glip_adapt import attach, load_trunk
from glip_adapt.bench.report.plotting import COLOURS, GREY, build_figure, finish_axes
from glip_adapt.core.files import written_whole

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 8, 32)
REQUESTS = 160  # for each number of clients
SIZE, SMALL, SHORT_SIDE = (320, 240), (64, 48), 64  # of pictures, pixels; of the view of small ones
MEMORY_REQUESTS, EVERY, SENDERS = 10_000, 250, 8
MEMORY, CACHE = "process_resident_memory_bytes", "glip_adapt_feature_cache_bytes"
MOST_GROWTH = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of serving.json and serving.png")
    parser.add_argument("--requests", type=int, default=MEMORY_REQUESTS, help="for memory")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    file = arguments.results / "serving.json"
    if not arguments.draw:
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder) / "tools"
            attach(load_trunk("glip-nano"), "prompt", classes=("gear", "hammer", "star")).save(adapter)
            found = {"rates": measure_rates(adapter), "memory": follow_memory(adapter, arguments.requests)}
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    draw(found, arguments.results / "serving.png")
    print(format_table(found))
    return 0 if found["memory"]["growth"] <= MOST_GROWTH else 1


def measure_rates(adapter: Path) -> list[dict[str, float]]:
    """Return rate, waiting times and CPU time for each number of clients."""
    rows = []
    with service(adapter) as (port, process):
        load(port, 4, [jpeg(-1 - number) for number in range(20)])  # what the first calls allocate
        for number, clients in enumerate(CLIENTS):
            pictures = [jpeg(number * REQUESTS + place) for place in range(REQUESTS)]
            before, started = cpu_seconds(process), time.perf_counter()
            seconds = load(port, clients, pictures)
            wall = time.perf_counter() - started
            rows.append(
                {
                    "clients": clients,
                    "requests_per_second": REQUESTS / wall,
                    "median_seconds": float(np.quantile(seconds, 0.5)),
                    "p99_seconds": float(np.quantile(seconds, 0.99)),
                    "cpu_seconds_per_request": (cpu_seconds(process) - before) / REQUESTS,
                }
            )
            print(rows[-1], flush=True)
    return rows


def follow_memory(adapter: Path, requests: int) -> dict[str, Any]:
    """Return the memory of the service, in MB, over many requests after its cache is full, and how much it grew."""
    draws = random.Random(0)
    with service(adapter, "--short-side", str(SHORT_SIDE)) as (port, _):
        before_full = fill_cache(port, draws)
        counts, megabytes = [0], [number_of(port, MEMORY) / 1e6]
        for _ in track(range(requests // EVERY), description="memory"):
            load(port, SENDERS, [ppm(draws) for _ in range(EVERY)])
            counts.append(counts[-1] + EVERY)
            megabytes.append(number_of(port, MEMORY) / 1e6)
    growth = max(megabytes) / megabytes[0] - 1
    return {"before": before_full, "requests": counts, "megabytes": megabytes, "growth": growth}


def fill_cache(port: int, draws: random.Random) -> int:
    """Send small pictures until the service keeps no more features than before; return how many."""
    sent, kept = 0, -1.0
    while (now := number_of(port, CACHE)) > kept:
        kept = now
        load(port, SENDERS, [ppm(draws) for _ in range(EVERY)])
        sent += EVERY
    return sent


@contextmanager
def service(adapter: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Serve an adapter in a process of its own; return port and number of the process."""
    command = [sys.executable, "-u", "-m", "glip_adapt", "serve", str(adapter), "--port", "0", *options]
    with subprocess.Popen(
        [*command, "--most-waiting", str(2 * max(CLIENTS))], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            yield next(int(found[1]) for line in lines if (found := re.search(r":(\d+)/$", line.strip()))), process.pid
        finally:
            process.terminate()


def load(port: int, clients: int, pictures: list[bytes]) -> list[float]:
    """Send pictures by several clients; return the seconds of each request."""
    waiting, seconds = iter(pictures), []
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                picture = next(waiting, None)
            if picture is None:
                connection.close()
                return
            started = time.perf_counter()
            connection.request("POST", "/detect", picture)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(seconds) != len(pictures):
        raise RuntimeError(f"{len(pictures) - len(seconds)} of {len(pictures)} requests have no answer.")
    return seconds


def jpeg(seed: int) -> bytes:
    """Return a JPEG file that looks like no other."""
    noise = np.random.default_rng(abs(seed)).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)).save(file, "JPEG")
    return file.getvalue()


def ppm(draws: random.Random) -> bytes:
    """Return a small picture that takes no time to make."""
    return b"P6 %d %d 255\n" % SMALL + draws.randbytes(3 * SMALL[0] * SMALL[1])


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far, of all its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def number_of(port: int, name: str) -> float:
    """Return a number that the service tells of itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def draw(found: dict[str, Any], file: Path) -> None:
    """Write the figure."""
    memory, rates = found["memory"], found["rates"]
    foot = (f"glip-nano, prompt, CPU, loopback; {REQUESTS} requests for each number of clients, none sent twice.",)
    figure = build_figure("glip-adapt serve under load", foot, (10, 3.6))
    left, right = figure.subplots(1, 2)
    names = [str(row["clients"]) for row in rates]
    bars = left.bar(names, [row["requests_per_second"] for row in rates], color=COLOURS[0], width=0.6)
    left.bar_label(bars, [f"p99 {row['p99_seconds']:.2f} s" for row in rates], fontsize=9, color=GREY, padding=2)
    left.margins(y=0.15)
    left.set_xlabel("clients")
    finish_axes(left, "requests per second, and 99th percentile of waiting")
    right.plot(memory["requests"], memory["megabytes"], color=COLOURS[0])
    right.axhline(memory["megabytes"][0] * (1 + MOST_GROWTH), color=GREY, lw=1, ls=":")
    right.set_ylim(0, 1.2 * max(memory["megabytes"]))
    right.set_xlabel("requests")
    finish_axes(right, f"memory in MB; dotted: {MOST_GROWTH:.0%} more than at first")
    with written_whole(file) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def format_table(found: dict[str, Any]) -> str:
    """Return a Markdown table over the number of clients, and a sentence about memory."""
    lines = [
        "| clients | requests a second | median wait, s | 99th percentile, s | CPU seconds of the service a request |",
        "| --: | --: | --: | --: | --: |",
    ]
    for row in found["rates"]:
        lines.append(
            f"| {row['clients']} | {row['requests_per_second']:.1f} | {row['median_seconds']:.3f} | "
            f"{row['p99_seconds']:.3f} | {row['cpu_seconds_per_request']:.3f} |"
        )
    memory = found["memory"]
    lines.append(
        f"\nMemory over {memory['requests'][-1]:,} requests, after {memory['before']:,} that fill the cache: "
        f"{memory['megabytes'][0]:.0f} MB at first, {memory['megabytes'][-1]:.0f} MB at the end, at most "
        f"{max(memory['megabytes']):.0f} MB, {memory['growth']:+.1%}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
