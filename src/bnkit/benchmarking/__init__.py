"""`bench`: how fast bnkit's batch norms are on this machine, beside torch's."""

from bnkit.benchmarking.benchmark import Benchmark, bench
from bnkit.benchmarking.cases import CASES, QUICK, Case
from bnkit.benchmarking.measuring import Measurement, measure

__all__ = ["CASES", "QUICK", "Benchmark", "Case", "Measurement", "bench", "measure"]
