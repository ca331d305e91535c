"""Into which tasks a job is cut: small enough for the caches and to share, large enough to pay."""

import torch

from bnkit.kernels.cpu.layouts import Layout

# Bytes of a block of channels that is read twice: half of a common second-level cache.
CACHED = 2**20
# Bytes below which a helper is not worth waking, and which a task should have.
WORTHWHILE = 2**17
# Channels of a row that a block should have: two cache lines, which come in pairs.
LANES = 32


def cut(layout: Layout, bytes_per_value: int) -> tuple[int, int]:
    """Return how many channels a block has, and into how many parts its rows are cut.

    `bytes_per_value` counts all tensors that are read twice. A job in one part reads from memory
    once; in several parts it needs a second reading but no number of channels.

    >>> cut(Layout("rows", 60, 100, 1), 4)
    (100, 1)
    """
    threads = torch.get_num_threads()
    per_channel = layout.rows * layout.space * bytes_per_value
    size = per_channel * layout.channels
    if threads == 1 or size < 2 * WORTHWHILE:
        return _width(layout, per_channel, layout.channels), 1
    tasks = min(8 * threads, size // WORTHWHILE)
    width = _width(layout, per_channel, -(-layout.channels // tasks))
    blocks = -(-layout.channels // width)
    if blocks >= 2 * threads or (layout.name == "rows" and blocks > 1):
        return width, 1
    return width, min(layout.rows, -(-tasks // blocks))


def _width(layout: Layout, per_channel: int, wanted: int) -> int:
    if layout.name == "planes":
        return max(1, min(wanted, CACHED // max(1, per_channel)))
    fitting = CACHED // (per_channel * LANES) * LANES
    if fitting < LANES:
        return layout.channels
    return min(fitting, layout.channels, max(1, -(-wanted // LANES)) * LANES)
