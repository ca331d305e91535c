"""The exchange between ranks: each sends its values to all, and no rank waits forever.

Before anything else the ranks tell each other where they are (layer, call, phase). A rank that is
in another place, or missing, is therefore an error within the time limit, and not a hang.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from bnkit.internals import time_limit

Phase = Literal["forward", "backward"]

_HEADER_BYTES = 256
_NAME_BYTES = 180  # of a longer name the end, which tells layers apart
_TAG = 0xB4  # so that messages which users send over the same group are not mixed with ours
_SHORTEST_WAIT = timedelta(milliseconds=1)  # 0 would mean no limit


class SyncError(RuntimeError):
    """The ranks of a group do not meet in the same layer; the message says who is where."""


@dataclass(frozen=True)
class Place:
    """Where a rank is: in which call of which layer, forward or backward, with how many channels.

    >>> print(Place("features.1", 3, "backward", 64))
    backward of layer 'features.1' (call 3, 64 channels)
    """

    layer: str
    call: int
    phase: Phase
    channels: int

    def __str__(self) -> str:
        return f"{self.phase} of layer '{self.layer}' (call {self.call}, {self.channels} channels)"


_alone: ContextVar[bool] = ContextVar("_alone", default=False)


@contextmanager
def without_other_ranks() -> Iterator[None]:
    """Let synchronised layers normalise by their own mini-batches in the block.

    Who looks at a copy of a model on one rank must not wait for the others, nor answer them.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_without_other_ranks() -> bool:
    """Return whether synchronised layers are on their own at this moment."""
    return _alone.get()


class Ranks:
    """The processes that a layer meets: those of `group`, by default of the default group.

    Without torch.distributed, or before it is initialised, the process is alone. A copy shares the
    group. A pickle cannot hold it: what was pickled with a group of its own is refused by
    `is_alone` until it is given another.

    >>> Ranks().is_alone("bn1")
    True
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, lost: bool = False) -> None:
        self.group = group
        self._lost = lost
        self._calls: Counter[str] = Counter()

    def is_alone(self, layer: str) -> bool:
        """Return whether there is no other process to exchange with; `layer` is named in errors.

        Raises RuntimeError where the group was lost in pickling, and where this process is not
        one of the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return True
        if self._lost:
            raise RuntimeError(
                f"layer '{layer}' was pickled, and a pickle cannot hold its process group: set "
                f"`layer.process_group` to a group, as from make_group(), or to None for the "
                f"default one"
            )
        size = dist.get_world_size(self.group)
        if size < 1:
            raise RuntimeError(
                f"this process is not one of the `process_group` of layer '{layer}': give each "
                f"layer a group that its own process belongs to"
            )
        return size == 1

    def next_call(self, layer: str, channels: int) -> Place:
        """Return the place of the forward that begins: the calls of each name are counted."""
        self._calls[layer] += 1
        return Place(layer, self._calls[layer], "forward", channels)

    def __deepcopy__(self, memo: object) -> "Ranks":
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _after_pickling, (self._lost or self.group is not None,)


def _after_pickling(lost: bool) -> Ranks:
    return Ranks(lost=lost)


def make_group(timeout: float = 300.0, *, ranks: Sequence[int] | None = None) -> dist.ProcessGroup:
    """Return a new group of `ranks` (all by default) whose ranks wait at most `timeout` seconds.

    All ranks of the default group have to call it, in the same order, also those that are not in
    `ranks`, as torch.distributed.new_group demands. Places always travel over gloo, on the CPU,
    where a limit can be kept; statistics on GPUs travel as in the default group. Raises ValueError
    for a `timeout` that is not positive, and, from torch, before torch.distributed is initialised.
    """
    if not timeout > 0:
        raise ValueError(f"`timeout` is {timeout}: give the seconds to wait, more than 0")
    backends = {**_backends(None), "cpu": "gloo"}
    group: dist.ProcessGroup = dist.new_group(
        None if ranks is None else list(ranks),
        timeout=timedelta(seconds=timeout),
        backend=",".join(f"{device}:{backend}" for device, backend in backends.items()),
    )
    return group


def exchange(
    count: int, values: Tensor, place: Place, group: dist.ProcessGroup | None
) -> tuple[list[int], list[Tensor]]:
    """Return the `count`s and the `values` of all ranks of `group`, in the order of the ranks.

    `values` have the same shape and dtype on all ranks that are at the same place. They travel in
    the memory of their device where the group has a backend there that is not gloo, otherwise
    through that of the CPU. Raises SyncError where another rank is at another place, has died, or
    does not come within the limit of the group.
    """
    # 256 bytes of text from each rank go ahead: only ranks in the same call of the same layer have
    # `values` of one shape, and gloo would wait, or mix them up, where shapes differ.
    headers = [bytes(h.tolist()) for h in _all_gather(_header(place, count), place, group)]
    places, counts = zip(*map(_read, headers), strict=True)
    if len(set(places)) > 1:
        raise SyncError(_parted(places, dist.get_rank(group)))
    return [int(c) for c in counts], _all_gather(values, place, group)


def _header(place: Place, count: int) -> Tensor:
    # "phase call channels count name", the name last because it may hold spaces
    name = place.layer.encode()[-_NAME_BYTES:]
    text = f"{place.phase} {place.call} {place.channels} {count} ".encode() + name
    return torch.frombuffer(bytearray(text.ljust(_HEADER_BYTES, b"\0")), dtype=torch.uint8)


def _read(header: bytes) -> tuple[Place, int]:
    phase, call, channels, count, layer = (
        header.rstrip(b"\0").decode(errors="replace").split(" ", 4)
    )
    where: Phase = "forward" if phase == "forward" else "backward"
    return Place(layer, int(call), where, int(channels)), int(count)


def _all_gather(values: Tensor, place: Place, group: dist.ProcessGroup | None) -> list[Tensor]:
    device, backend = _road(group, values.device)
    own, size = dist.get_rank(group), dist.get_world_size(group)
    outgoing = values.to(device)
    # The own share is not sent, and all shares keep the order of the ranks: then every rank adds
    # them up in the same order and gets the same bits.
    gathered = [outgoing if r == own else torch.empty_like(outgoing) for r in range(size)]
    if backend == "gloo":
        _send_to_each(outgoing, gathered, place, group)
    else:  # its own limits hold there
        dist.all_gather(gathered, outgoing.clone(), group=group)
    return [v.to(values.device) for v in gathered]


def _road(group: dist.ProcessGroup | None, device: torch.device) -> tuple[torch.device, str]:
    """Return in which memory values of `device` travel, and by which backend."""
    backends = _backends(group)
    # gloo takes GPU tensors for some collectives only, so its values go through the CPU's memory.
    if device.type != "cpu" and backends.get(device.type, "gloo") != "gloo":
        return device, backends[device.type]
    if "cpu" in backends:
        return torch.device("cpu"), backends["cpu"]
    kind, backend = next(iter(backends.items()))
    return torch.device(kind), backend


def _backends(group: dist.ProcessGroup | None) -> dict[str, str]:
    """Return the backend for each kind of device, as {"cpu": "gloo", "cuda": "nccl"}."""
    pairs = (pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return {device: backend for device, backend in pairs}  # noqa: C416  dict() types worse


# gloo: a message from each rank to each, so that it is known who has not come


def _send_to_each(
    outgoing: Tensor, gathered: list[Tensor], place: Place, group: dist.ProcessGroup | None
) -> None:
    """Fill `gathered` with what the other ranks send, by their ranks in the group."""
    own, limit = dist.get_rank(group), _limit(group)
    end = time.monotonic() + limit.total_seconds()  # one limit for all ranks together
    # All messages are posted before the first is waited for, so no order of ranks can deadlock.
    meetings = {
        other: (_receive(gathered[other], other, group), _send(outgoing, other, group))
        for other in range(len(gathered))
        if other != own
    }
    missing = [other for other, works in meetings.items() if not _complete(works, end)]
    if missing:
        raise SyncError(_left_alone(place, own, missing, limit, late=time.monotonic() >= end))


def _receive(buffer: Tensor, other: int, group: dist.ProcessGroup | None) -> dist.Work | None:
    with suppress(RuntimeError):  # raised at once where the connection is closed
        return dist.irecv(buffer, group=group, group_src=other, tag=_TAG)
    return None


def _send(values: Tensor, other: int, group: dist.ProcessGroup | None) -> dist.Work | None:
    with suppress(RuntimeError):
        return dist.isend(values, group=group, group_dst=other, tag=_TAG)
    return None


def _complete(works: Iterable[dist.Work | None], end: float) -> bool:
    """Wait for `works` until the time `end`; return whether all of them succeeded."""
    try:
        for work in works:
            if work is None:
                return False
            work.wait(max(timedelta(seconds=end - time.monotonic()), _SHORTEST_WAIT))
    except RuntimeError:  # gloo's text names no rank and nothing of ours
        return False
    return True


def _limit(group: dist.ProcessGroup | None) -> timedelta:
    group = dist.group.WORLD if group is None else group
    assert group is not None
    return time_limit(group)


def _left_alone(
    place: Place, own: int, missing: Sequence[int], limit: timedelta, *, late: bool
) -> str:
    seconds = f"{limit.total_seconds():g} s"
    what = (
        f"did not come within the limit of {seconds}: dead, in eval mode, stopped by an error, or "
        f"with fewer mini-batches"
        if late
        else f"closed the connection (limit {seconds}): dead, or after an error of its own"
    )
    return (
        f"rank {own} is in the {place}, where {_ranks(missing)} {what}; all ranks must call the "
        f"same layers in the same order. This group is of no more use: make another, as by "
        f"make_group()"
    )


def _parted(places: Sequence[Place], own: int) -> str:
    others = "; ".join(
        f"rank {rank} in the {place}" for rank, place in enumerate(places) if place != places[own]
    )
    return (
        f"rank {own} is in the {places[own]}, but {others}: all ranks must call the same layers "
        f"in the same order, each in the same mode"
    )


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
