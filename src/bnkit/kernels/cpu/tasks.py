"""How a job is worked off: claim a task, take its block of channels through the phases, repeat."""

from collections.abc import Iterator
from typing import Any

from bnkit.kernels.cpu.access import claim
from bnkit.kernels.cpu.compiling import compiled
from bnkit.kernels.cpu.jobs import APPLY, FINISH


@compiled
def claimed_tasks(job: Any) -> Iterator[Any]:
    """Yield the part, range of channels and range of rows of each task that this thread gets."""
    parts = 1 if job.phase == FINISH else job.parts
    tasks = job.blocks * parts
    task = claim(job.counter)
    while task < tasks:
        # What was gathered last is in the cache: it is applied first.
        turn = tasks - 1 - task if job.phase == APPLY else task
        block, part = turn // parts, turn % parts
        channels = block * job.width, min((block + 1) * job.width, job.channels)
        yield part, channels, (job.rows * part // parts, job.rows * (part + 1) // parts)
        task = claim(job.counter)
