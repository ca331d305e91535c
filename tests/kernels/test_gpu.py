import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kernels.gpu_checks import CHECKS, DEVICE_CHECKS, TOO_LARGE

pytest.importorskip("triton", reason="triton is not installed: it is published for Linux only")

from bnkit.kernels.gpu import tiling
from bnkit.kernels.gpu.views import View
from kernels.gpu_compilation import CHECKS as COMPILATIONS

TESTS = Path(__file__).parents[1]
NO_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, worker_id):
    """Return a folder that all workers of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def interpreted(folder):
    return outcomes_of("gpu_checks", folder, TRITON_INTERPRET="1", PYTHONWARNINGS="ignore")


@pytest.fixture(scope="session")
def compiled(folder):
    return outcomes_of("gpu_compilation", folder, TRITON_CACHE_DIR=str(folder / "triton"))


def outcomes_of(program, folder, **variables):
    """Run a program that prints its outcomes as JSON, once for all workers."""
    outcomes = folder / f"{program}.json"
    with FileLock(f"{outcomes}.lock"):
        if not outcomes.exists():
            outcomes.write_text(output_of(TESTS / "kernels" / f"{program}.py", **variables))
    return json.loads(outcomes.read_text())


def output_of(program, **variables):
    path = os.pathsep.join([str(TESTS), *sys.path])  # the same bnkit as here
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in TOO_LARGE])
def test_in_the_interpreter(name, interpreted):
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.parametrize("name", COMPILATIONS)
def test_compiled_for_an_h100(name, compiled):
    assert compiled[name] is None, compiled[name]


@NO_DEVICE
@pytest.mark.parametrize("name", [*CHECKS, *DEVICE_CHECKS])
def test_on_the_device(name):
    {**CHECKS, **DEVICE_CHECKS}[name](torch.device("cuda"))


# The sizes of ResNet-50 at batch 32 and 256, the smallest, and some that divide by nothing.
SIDES = ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7), (3, 1), (67, 13))
VIEWS = [
    view
    for samples in (1, 32, 60, 256)
    for channels, side in SIDES
    for view in (
        View(samples, channels, side * side),
        View(samples * side * side, channels, 1),
    )
]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_tiles_cover_the_tensor_and_fill_the_chip(view, itemsize):
    cut = tiling.tiling_for(view, itemsize, 132)
    sides = cut.outer, cut.channels, cut.inner
    assert all(side & (side - 1) == 0 for side in sides)  # as Triton wants them
    assert cut.outer * cut.channels * cut.inner <= tiling.STREAMED_TILE
    blocks, parts = cut.grid_of_reduction(view)
    tiles = -(-view.outer // cut.outer)
    assert 1 <= parts <= tiles
    # Either the multiprocessors have work, or there is no more of it.
    assert blocks * parts >= 132 or parts == tiles
    whole = tiling.tiling_of_whole_channels(view, itemsize)
    if whole is not None:
        assert whole.outer >= view.outer
        assert whole.inner >= view.inner
