"""How a view is cut into tiles for the programs of a GPU: block sizes by shape.

No figure here was tuned on a device yet; each has its reason beside it.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bnkit.kernels.gpu.views import View

CACHE_LINE = 128  # bytes
SECTOR = 32  # bytes, the least that is moved between memory and cache
LONGEST_GRID_AXIS = 65_535  # programs on any axis of the grid but the first

# 256 threads × 16 values: two or four loads of 16 bytes are under way in each thread, and with the
# two accumulators of a reduction there is room for 2 to 4 programs on a multiprocessor.
STREAMED_TILE = 4096
STREAMING_WARPS = 8
# Reductions start this many programs per multiprocessor: enough to hide the latency of memory, and
# few enough that each sweeps several tiles and the partial results stay small.
PROGRAMS_PER_MULTIPROCESSOR = 4
# Elementwise kernels read the parameters of the channels once for this many tiles.
MAPPED_TILES = 4
# Up to here all values of a channel stay in registers, 32 a thread with 512 threads: the tensor is
# read once, and one launch does all. Small tensors are bound by launches.
WHOLE_TILE = 16_384
# A row of channels and 1024 partial results of each are merged at once.
MERGED_PARTS = 1024
MERGED_CHANNELS = 4


@dataclass(frozen=True)
class Tiling:
    """The sides of a tile (powers of two), and how the programs of a reduction share the work.

    Each program has a block of channels and inner positions, and sweeps every `parts`-th tile of
    the outer axis.
    """

    outer: int
    channels: int
    inner: int
    warps: int
    parts: int = 1

    def arguments(self) -> dict[str, int]:
        """Return the block sizes as the kernels take them."""
        return {
            "OUTER": self.outer,
            "CHANNELS": self.channels,
            "INNER": self.inner,
            "num_warps": self.warps,
        }

    def grid_of_reduction(self, view: View) -> tuple[int, int]:
        """Return the programs of a reduction."""
        blocks = _tiles(view.channels, self.channels) * _tiles(view.inner, self.inner)
        return blocks, self.parts

    def grid_of_map(self, view: View) -> tuple[int, int]:
        """Return the programs of an elementwise kernel: a few tiles each, if that makes enough."""
        blocks, parts = self.grid_of_reduction(view)
        enough = _tiles(_tiles(view.outer, self.outer), MAPPED_TILES)
        return blocks, min(max(parts, enough), LONGEST_GRID_AXIS)

    def partial_results(self, view: View) -> int:
        """Return how many programs share a channel in a reduction."""
        return _tiles(view.inner, self.inner) * self.parts


def merging(channels: int, parts: int) -> tuple[tuple[int], dict[str, int]]:
    """Return grid and block sizes of a kernel that merges `parts` partial results a channel.

    >>> merging(64, 500)
    ((16,), {'PARTS': 512, 'CHANNELS': 4, 'num_warps': 8})
    """
    block = min(_power_of_two(parts), MERGED_PARTS)
    blocks = {"PARTS": block, "CHANNELS": MERGED_CHANNELS, "num_warps": 8 if block > 128 else 4}
    return (_tiles(channels, MERGED_CHANNELS),), blocks


def tiling_of_whole_channels(view: View, itemsize: int) -> Tiling | None:
    """Return tiles that hold all values of their channels, or None where they are too many.

    >>> tiling_of_whole_channels(View(32, 512, 49), 2)
    Tiling(outer=32, channels=2, inner=64, warps=8, parts=1)
    >>> tiling_of_whole_channels(View(32, 64, 12544), 2)
    """
    outer, inner = _power_of_two(view.outer), _power_of_two(view.inner)
    room = WHOLE_TILE // (outer * inner)
    # What lies together should fill a sector (channels last) or a few (small feature maps).
    wanted = (
        SECTOR // itemsize if inner == 1 else _power_of_two(256 // itemsize // max(view.inner, 1))
    )
    channels = min(wanted, room, _power_of_two(view.channels))
    if not room or (inner == 1 and channels < min(wanted // 2, view.channels)):
        return None
    threads = outer * channels * inner // 16
    return Tiling(outer, channels, inner, warps=min(max(threads // 32, 4), 16))


def tiling_of_stream(view: View, x: Tensor) -> Tiling:
    """Return tiles for reading `x`, seen as `view`, tile by tile on its device."""
    return tiling_for(view, x.element_size(), multiprocessors(x.device))


def tiling_for(view: View, itemsize: int, multiprocessors: int) -> Tiling:
    """Return tiles for reading a tensor tile by tile.

    >>> tiling_for(View(32 * 112 * 112, 64, 1), 2, 132)  # channels last
    Tiling(outer=64, channels=64, inner=1, warps=8, parts=523)
    >>> tiling_for(View(32, 64, 112 * 112), 2, 132)  # channels first
    Tiling(outer=4, channels=1, inner=1024, warps=8, parts=1)
    """
    channels, inner = _sides_of_stream(view, itemsize)
    outer = min(_power_of_two(view.outer), STREAMED_TILE // (channels * inner))
    blocks = _tiles(view.channels, channels) * _tiles(view.inner, inner)
    tiles = max(1, _tiles(view.outer, outer))
    wanted = _tiles(PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, max(1, blocks))
    sweep = _tiles(tiles, min(tiles, wanted, LONGEST_GRID_AXIS))  # in equal shares
    return Tiling(outer, channels, inner, STREAMING_WARPS, parts=_tiles(tiles, sweep))


def _sides_of_stream(view: View, itemsize: int) -> tuple[int, int]:
    most_channels = _power_of_two(view.channels)
    if view.inner == 1:
        return min(most_channels, CACHE_LINE // itemsize), 1
    if view.inner <= 256:  # whole feature maps, several at once where they are small
        return min(most_channels, _power_of_two(256 // max(view.inner, 1))), _power_of_two(
            view.inner
        )
    # Long runs are good, but 3136 values fill 77% of tiles of 1024 and 87% of tiles of 512.
    filled = {side: view.inner / (_tiles(view.inner, side) * side) for side in (1024, 512, 256)}
    return 1, next((side for side, share in filled.items() if share >= 0.85), 128)


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; 1 for the CPU of Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()


def _tiles(size: int, side: int) -> int:
    return -(-size // side)
