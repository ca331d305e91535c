"""Benchmarks that were never measured, for tests of what is made of them."""

from bnkit.benchmarking import Benchmark, Case, Measurement

SECONDS = {
    "torch": 4.0,
    "torch again": 5.0,
    "bnkit": 1.0,
    "bnkit, fresh memory": 2.0,
    "copy": 0.5,
    "inference, torch": 6.0,
    "inference, bnkit": 2.0,
}
LARGE = (32, 64, 112, 112)
SMALL = (60, 100)


def measurement(shape, *, last=False, **changes):
    names = {name.replace("_", " "): value for name, value in changes.items()}
    return Measurement(Case(shape, channels_last=last), SECONDS | names)


def benchmark(*measurements):
    facts = {"processor": "a processor", "torch": "2.13.0", "bnkit": "0.1", "date": "today"}
    return Benchmark(facts, 2, measurements or (measurement(LARGE), measurement(SMALL)))
