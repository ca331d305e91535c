"""BN+ReLU on the CPU, as `bnkit bench` measures it, on one thread and on two.

    python benchmarks/kernels.py [--threads 1 2] [--compile] [--tuned]

With `--tuned`, once more in a process in which torch takes huge pages and keeps what it frees
(THP_MEM_ALLOC_ENABLE=1 and glibc's thresholds), so that what remains is the arithmetic. Nothing
else should run on the machine; two minutes for each number of threads. The figures go to
benchmarks/kernels.json, from which `tables.py` makes those of docs/accelerate.md.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from bnkit.benchmarking import CASES, QUICK, bench
from bnkit.benchmarking.cases import SMALL

FIGURES = Path(__file__).with_suffix(".json")
TUNED = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=1.4, help="for each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which is slow")
    parser.add_argument("--tuned", action="store_true", help="with torch's memory tuned, too")
    parser.add_argument("--quick", action="store_true", help="small shapes only, nothing is kept")
    parser.add_argument("--as-json", action="store_true", help="this environment only, as JSON")
    arguments = parser.parse_args()
    cases = QUICK if arguments.quick else (*CASES, *SMALL)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if arguments.as_json:
            print(json.dumps(bench(cases, seconds=1.0).to_json()))
            return
        result = bench(cases, seconds=arguments.seconds, compiled=arguments.compile, progress=track)
        print(result, flush=True)
        figures = result.to_json()
        if arguments.tuned:
            figures["tuned memory"] = tuned(threads, quick=arguments.quick)
        if not arguments.quick:
            kept = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
            kept[f"{threads} threads"] = figures
            FIGURES.write_text(json.dumps(kept, indent=1) + "\n")


def tuned(threads: int, *, quick: bool) -> dict[str, Any]:
    """Return the figures of a process whose memory is tuned."""
    options = ["--as-json", "--threads", str(threads), *(["--quick"] if quick else [])]
    answer = subprocess.run(
        [sys.executable, __file__, *options],
        env=os.environ | TUNED,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


if __name__ == "__main__":
    main()
