"""Opening the log of a playbook: events a second, against `json.loads` of its lines alone.

An event is a line of the log, with the sample that it was learned from: every third adds a bullet, the others tag two.
Opening reads the file, checks the chain of hashes and every field, and folds all into the playbook. The peer, which does
nothing but parse JSON, is the floor for a log of JSON lines in Python. One thread; ratio > 1: ours is faster, checks and all.

    python benchmarks/playbook_log.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _common import finish, interleave, machine, print_table, ratios
from postgrad.core.runfiles import to_json_line
from postgrad.playbook.book import Add, Delta, Operation, Tag
from postgrad.playbook.log import PlaybookLog, digest, to_line


def write_log(path: Path, num_events: int) -> None:
    """A log as `learn` leaves it, without the waiting for the disk."""
    head, num_bullets, lines = "", 0, list[bytes]()
    for index in range(num_events):
        operations: tuple[Operation, ...]
        if index % 3 == 0:
            num_bullets += 1
            text = (
                f"When the input has {index} parts, split it at each comma and handle every part by itself."
            )
            operations = (Add("STRATEGIES & INSIGHTS", text),)
        else:
            operations = (
                Tag(f"strat-{num_bullets:05d}", helpful=1),
                Tag(f"strat-{max(1, num_bullets - 5):05d}", harmful=1),
            )
        sample = {"index": index, "correct": index % 2 == 0, "answer": "42"}
        delta = Delta(operations, f"chain_sum/{index}", sample, (), "2026-01-01T00:00:00Z")
        lines.append(to_json_line(to_line(delta, head, first=not index)).encode())
        head = digest(lines[-1])
    path.write_bytes(b"".join(lines))


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="10,000 events instead of 100,000")
    options = parser.parse_args()
    num_events = 10_000 if options.quick else 100_000
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "playbook.jsonl"
        write_log(path, num_events)
        spent = {"open": list[float](), "json": list[float]()}

        def open_it() -> int:
            started = time.process_time()
            log = PlaybookLog(path)
            spent["open"].append(num_events / (time.process_time() - started))
            return len(log.deltas)

        def parse_it() -> int:
            started = time.process_time()
            rows = [json.loads(line) for line in path.read_bytes().splitlines()]
            spent["json"].append(num_events / (time.process_time() - started))
            return len(rows)

        rates = interleave({"open": open_it, "json": parse_it}, 3 if options.quick else 5)
        size = path.stat().st_size
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    processor = {name: sorted(values)[len(values) // 2] for name, values in spent.items()}
    print_table(
        f"{num_events:,} events, {size / num_events:.0f} bytes each",
        ["", "events/s", "events/s of processor time"],
        [
            ["postgrad: read, check, fold", middle["open"], processor["open"]],
            ["json.loads alone", middle["json"], processor["json"]],
        ],
    )
    # By processor time, which what else the machine does disturbs less.
    ratio, interval = ratios(spent["open"], spent["json"])
    finish(
        "playbook_log",
        processor["open"],
        processor["json"],
        "events/s of processor time",
        ratio,
        interval,
        wall={"ours": middle["open"], "peer": middle["json"]},
        num_events=num_events,
        machine=machine(1),
    )


if __name__ == "__main__":
    main()
