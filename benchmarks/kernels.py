"""BN+ReLU on the CPU, as `bnkit bench` measures it, and once more with torch's memory tuned.

    python benchmarks/kernels.py [--compile]

The second table is of a process in which torch takes huge pages and keeps what it frees
(THP_MEM_ALLOC_ENABLE=1 and glibc's thresholds), so that what remains is the arithmetic. Nothing
else should run on the machine. The figures go to benchmarks/kernels.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

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
    parser.add_argument("--compile", action="store_true", help="torch.compile too, which is slow")
    parser.add_argument("--quick", action="store_true", help="small shapes only, nothing is kept")
    parser.add_argument("--as-json", action="store_true", help="this environment only, as JSON")
    arguments = parser.parse_args()
    cases = QUICK if arguments.quick else (*CASES, *SMALL)
    if arguments.as_json:
        print(json.dumps(bench(cases, seconds=1.0).to_json()))
        return
    result = bench(cases, seconds=1.4, compiled=arguments.compile, progress=track)
    print(result)
    options = ["--as-json", *(["--quick"] if arguments.quick else [])]
    command = [sys.executable, __file__, *options]
    answer = subprocess.run(
        command, env=os.environ | TUNED, stdout=subprocess.PIPE, text=True, check=True
    )
    tuned = json.loads(answer.stdout)
    print("with tuned memory:", json.dumps(tuned["summary"], indent=1))
    if not arguments.quick:
        FIGURES.write_text(json.dumps({**result.to_json(), "tuned memory": tuned}, indent=1) + "\n")


if __name__ == "__main__":
    main()
