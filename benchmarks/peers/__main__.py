"""``python -m benchmarks.peers``: llavakit, generate, llama.cpp and vLLM on the same requests.

Figures are medians over the rounds. Peers that are not installed are skipped with a line that
says how they would be found; README.md beside this file says how they are built.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.child import WORKLOADS
from benchmarks.peers.engines import ENGINES, Engine, find
from benchmarks.peers.files import prepare
from benchmarks.peers.rounds import Contender, Table, run_rounds
from benchmarks.peers.table import figures_of, lines_of
from benchmarks.run import quiet

FULL = {"generate": "fp32", "llavakit": "fp32", "llama.cpp": "f32", "vLLM": "fp32"}
QUANTISED = [
    *FULL.items(),
    ("llavakit", "8bit"),
    ("llama.cpp", "q8_0"),
    ("llavakit", "4bit"),
    ("llama.cpp", "q4_0"),
]


def main() -> None:
    """Find the engines, run all rounds, print the tables, and write the figures if asked to."""
    options = _options()
    quiet()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    engines, skipped = find(options.only)
    versions = {engine.name: engine.version for engine in engines}
    for name, version in versions.items():
        print(f"{name}: {version}")
    for name, reason in skipped.items():
        print(f"{name}: skipped, {reason}")
    print(f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}\n", flush=True)

    figures: dict[str, Any] = {}
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = (options.folder or Path(made)).absolute()
        for table in _tables(options, engines, folder):
            for threads in options.threads:
                results, failed = run_rounds(table, options.rounds, threads)
                failures |= failed
                title = f"{table.title}, {threads} of {os.cpu_count()} threads"
                figures[title] = figures_of(results)
                print(f"{title} (median of {options.rounds})")
                print("\n".join(lines_of(figures[title])), "\n", flush=True)
                if options.out:  # at once: who stops a long run keeps what it has
                    saved = {
                        "versions": versions,
                        "skipped": skipped,
                        "failed": failures,
                        "cores": os.cpu_count(),
                        "instructions": torch.backends.cpu.get_cpu_capability(),
                        "rounds": options.rounds,
                        "figures": figures,
                    }
                    options.out.write_text(json.dumps(saved, indent=1) + "\n")
    if failures:
        sys.exit(f"failed: {', '.join(failures)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2][: os.cpu_count()])
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument(
        "--workloads",
        nargs="+",
        choices=[*WORKLOADS, "quantised"],
        default=[*WORKLOADS, "quantised"],
        help="quantised is a table of its own: one request, a larger model",
    )
    parser.add_argument("--tiny", action="store_true", help="a dry run; its figures mean nothing")
    parser.add_argument("--folder", type=Path, help="keep models and logs here, for the next run")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    return parser.parse_args()


def _tables(options: argparse.Namespace, engines: Sequence[Engine], folder: Path) -> list[Table]:
    by_name = {engine.name: engine for engine in engines}
    tables = []

    def add(title: str, shape: str, named: Any, workloads: list[str], slots: int) -> None:
        shape = "tiny" if options.tiny else shape
        contenders = [
            Contender(by_name[name], precision) for name, precision in named if name in by_name
        ]
        if contenders and workloads:
            made = prepare(folder / shape, engines)
            tables.append(Table(f"{title} ({shape} model)", made, contenders, workloads, slots))

    asked = [name for name in WORKLOADS if name in options.workloads]
    add("16 requests at once, one request, a chat", "small", FULL.items(), asked, 4)
    if "quantised" in options.workloads:
        add("one request, weights quantised", "medium", QUANTISED, ["single"], 1)
    return tables


if __name__ == "__main__":
    main()
