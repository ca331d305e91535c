"""`bench`: how fast bnkit's batch norms are on this machine, beside torch's."""

from bnkit.bench.benchmark import Benchmark, bench
from bnkit.bench.cases import CASES, QUICK, Case
from bnkit.bench.measuring import Measurement, measure

__all__ = ["CASES", "QUICK", "Benchmark", "Case", "Measurement", "bench", "measure"]
