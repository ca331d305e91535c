"""What `bnkit.keras.recalibrate` costs: against a plain pass over the same mini-batches.

    python benchmarks/recalibration_in_keras.py

Correctness first: the first batch norm's statistics must be those of float64. Then, network by
network and interleaved, the medians of a pass in inference and one in training mode, both without
gradients, of measuring, and of a copy of the model, of which `recalibrate` makes two. One thread,
whose own time is taken, so that what else runs on the machine counts for little. The figures go to
benchmarks/recalibration_in_keras.json.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import torch
from keras import layers as L

import bnkit.keras as bnk
from bnkit.experiments.provenance import environment
from bnkit.keras.kernels import array_of
from bnkit.keras.provenance import keras_versions
from bnkit.keras.rebuilding import rebuilt

FIGURES = Path(__file__).with_suffix(".json")
ROUNDS, BATCHES, SIZE = 2, 3, 8


def conv_net() -> Any:
    """Three convs, in which batch norm takes a large part of the time."""
    body: list[Any] = []
    for features in (32, 64, 128):
        body += [L.Conv2D(features, 3, padding="same", use_bias=False), L.BatchNormalization()]
        body += [L.ReLU(), L.MaxPooling2D()]
    return keras.Sequential(
        [keras.Input((64, 64, 3)), *body, L.GlobalAveragePooling2D(), L.Dense(10)]
    )


def public(name: str, size: int, **options: Any) -> Any:
    build = getattr(keras.applications, name)
    return build(input_shape=(size, size, 3), weights=None, classes=10, **options)


NETWORKS: dict[str, Callable[[], Any]] = {
    "three convs, 64×64": conv_net,
    "MobileNetV2, 224×224": lambda: public("MobileNetV2", 224),
    "ResNet50, 112×112": lambda: public("ResNet50", 112),
}


def check(model: Any, batches: list[Any]) -> None:
    plan = bnk.plan_recalibration(model, batches, progress=False)
    first = plan.layers[0].layer
    seen = keras.Model(model.inputs[0], model.get_layer(first).input)
    with torch.no_grad():
        x = np.concatenate([array_of(seen(batch)) for batch in batches])
    mean, variance = plan.new[first]
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-5)


def measure(name: str) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    model, rng = NETWORKS[name](), np.random.default_rng(0)
    shape = (SIZE, *model.input_shape[1:])
    batches = [rng.normal(size=shape).astype("float32") for _ in range(BATCHES)]
    check(model, batches)
    apart = rebuilt(model, {})  # a pass in training mode moves the statistics

    def passes(net: Any, *, training: bool) -> None:
        with torch.no_grad():
            for batch in batches:
                net(batch, training=training)

    def measuring() -> None:
        bnk.plan_recalibration(model, batches, progress=False)

    runs = {
        "inference": lambda: passes(model, training=False),
        "training mode": lambda: passes(apart, training=True),
        "measuring": measuring,
        "copy": lambda: rebuilt(model, {}),
    }
    times: dict[str, list[float]] = {run: [] for run in runs}
    for _ in range(ROUNDS + 1):
        for run, go in runs.items():
            start = time.process_time()
            go()
            times[run].append(time.process_time() - start)
    middle = {run: statistics.median(found[1:]) for run, found in times.items()}
    without_copy = middle["measuring"] - middle["copy"]
    return {
        "network": name,
        "batch norms": sum(isinstance(x, L.BatchNormalization) for x in model.layers),
        "mini-batches": f"{BATCHES} of {shape}",
        "milliseconds": {run: round(1000 * seconds, 1) for run, seconds in middle.items()},
        "measuring / inference": round(without_copy / middle["inference"], 2),
        "measuring / training mode": round(without_copy / middle["training mode"], 2),
        "copy / forward": round(BATCHES * middle["copy"] / middle["inference"], 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name in NETWORKS:
        rows.append(measure(name))
        print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    where = {**environment(), **keras_versions()}
    FIGURES.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
