"""Compile the GPU kernels for an H100 on a machine that has none, and look at what came out.

    PYTHONPATH=tests python tests/kernels/gpu_compilation.py

prints {name: what went wrong, or null} as JSON. The interpreter runs Python and so takes more than
the compiler does. This goes through private names of triton, whose version is pinned.
"""

import json
import re
import traceback
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bnkit.kernels import gpu
from bnkit.kernels.activations import ACTIVATIONS
from bnkit.kernels.gpu import tiling

BFLOAT16 = torch.bfloat16


class Compiler:
    """Stands in for a driver: it knows which device to compile for, and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, _device):
        return 0


def compiled(shape, dtype, *, last=False, activation=None, residual=False):
    """Return {kernel: PTX} of all that training and the gradient of inference launch."""
    x = torch.empty(shape, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    parameters = torch.ones(shape[1]), torch.ones(shape[1])
    given = {"eps": 1e-5, "activation": activation, "residual": x if residual else None}
    found = {}
    run = JITFunction.run

    def compile_only(kernel, *arguments, grid, warmup, **keywords):  # noqa: ARG001  as called
        made = run(kernel, *arguments, grid=grid, warmup=True, **keywords)
        found[kernel.fn.__name__] = made.asm["ptx"]

    with mock.patch.object(JITFunction, "run", compile_only):
        _, *statistics = gpu.batch_norm_forward(x, *parameters, **given)
        gpu.batch_norm_backward(x, x, *statistics, *parameters, **given)
    return found


def values_at_once(ptx, dtype):
    """Return the widest load of a tile, in values."""
    bits = [int(many or 1) * int(width) for many, width in _loads(ptx)]
    return max(bits) // (8 * dtype.itemsize)


def _loads(ptx):
    return re.findall(r"ld\.global(?:\.L1::\w+)?(?:\.v(\d))?\.b(\d+)", ptx)


def large_channels_last_moves_16_bytes_at_once():
    found = compiled((32, 64, 56, 56), BFLOAT16, last=True, activation="relu", residual=True)
    assert set(found) == {
        "partial_moments", "merge_moments", "normalise",
        "partial_gradients", "add_parts", "input_gradient",
    }  # fmt: skip
    assert {values_at_once(found[n], BFLOAT16) for n in ("partial_moments", "normalise")} == {8}


def large_channels_first_moves_16_bytes_at_once():
    found = compiled((32, 64, 56, 56), torch.float32, activation="relu")
    assert values_at_once(found["partial_moments"], torch.float32) == 4


def maps_of_14_by_14_move_4_values_at_once():
    # 196 is no multiple of 16: by itself the compiler would take one value after the other.
    found = compiled((256, 64, 14, 14), BFLOAT16)
    assert values_at_once(found["partial_moments"], BFLOAT16) == 4


def small_tensors_take_one_launch_each_way():
    found = compiled((32, 512, 7, 7), BFLOAT16, last=True, activation="relu")
    assert set(found) == {"normalise_whole_channels", "gradients_of_whole_channels"}


def every_activation():
    for activation in ACTIVATIONS:
        compiled((4, 2), torch.float32, activation=activation)


CHECKS = {
    check.__name__.replace("_", " "): check
    for check in (
        large_channels_last_moves_16_bytes_at_once,
        large_channels_first_moves_16_bytes_at_once,
        maps_of_14_by_14_move_4_values_at_once,
        small_tensors_take_one_launch_each_way,
        every_activation,
    )
}


def main():
    driver.set_active(Compiler())
    tiling.multiprocessors = lambda _: 132  # of an H100
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            check()
        except Exception:  # noqa: BLE001  reported under its name
            outcomes[name] = traceback.format_exc()
        else:
            outcomes[name] = None
    print(json.dumps(outcomes))  # noqa: T201  what the test reads


if __name__ == "__main__":
    main()
