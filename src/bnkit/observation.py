"""Every hook and every mode switch of the package, as context managers.

Each restores what it changed when its block ends, also by an exception.
"""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer
from torch.utils.hooks import RemovableHandle

from bnkit.internals import AnyBatchNorm, compiler_is_loaded, current_backward, frame_compiler
from bnkit.layers.exchange import without_other_ranks
from bnkit.layers.frozen import FrozenBatchNorm
from bnkit.moments import Moments

Before = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], object]
After = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], object]
See = Callable[[str, nn.Module, Tensor], object]
Model = TypeVar("Model", bound=nn.Module)
Mode = Callable[[nn.Module], AbstractContextManager[object]]
Block = AbstractContextManager[None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all of `model` in eval mode; afterwards each module's `training` is as it was.

    Only the flags are set: `train` and `eval` methods that do more are not called, so a layer
    that its owner froze stays frozen.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    >>> with evaluating(model):
    ...     [module.training for module in model.modules()]
    [False, False, False]
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, training in modes:
            if training:
                module.training = False
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


@contextmanager
def on_the_side(model: nn.Module, *, mode: Mode = evaluating) -> Iterator[None]:
    """Let `model` run on the side: in eval mode, without gradients, and without a trace of it.

    Afterwards its modes and the random generators are as they were. What the block makes can be
    trained and written into, also where the caller is in inference mode. Layers that are
    synchronised over ranks are on their own. `mode` puts the model in another mode than eval
    (contextlib.nullcontext leaves it in its own). Raises as `memory_explained` does.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> with on_the_side(model):
    ...     model.training, model(torch.ones(1, 2)).requires_grad
    (False, False)
    >>> model.training
    True
    """
    with (
        # Tensors of inference mode count no writes, which the dataflow needs, and cannot be trained
        torch.inference_mode(mode=False),
        torch.no_grad(),
        preserved_random_state(),
        without_other_ranks(),
        mode(model),
        memory_explained(),
    ):
        yield


class NotEnoughMemoryError(MemoryError):
    """What a verb needs does not fit into memory; the message says what to do."""


@contextmanager
def memory_explained() -> Iterator[None]:
    """Raise NotEnoughMemoryError for errors of Python, NumPy or torch that come of short memory.

    So it is for other errors that such a one has caused, as those that name the layer.

    >>> with memory_explained():
    ...     torch.empty(2**50, dtype=torch.uint8)
    Traceback (most recent call last):
    bnkit.observation.NotEnoughMemoryError: memory is too short (1125899906842624 bytes more): \
pass a smaller example or smaller mini-batches; the model is as it was
    """
    try:
        yield
    except NotEnoughMemoryError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _is_of_memory(cause):
            cause = cause.__cause__
        if cause is None:
            raise
        if isinstance(cause, NotEnoughMemoryError):
            raise cause from cause.__cause__
        asked = re.search(r"tried to allocate ([\d.]+ \w+)", str(cause), re.IGNORECASE)
        lacking = f"{asked[1]} more" if asked else str(cause).partition("\n")[0]
        place = str(error).partition(": ")[0] if error is not cause else ""
        told = ": ".join(filter(None, (place, lacking)))
        raise NotEnoughMemoryError(
            f"memory is too short{f' ({told})' if told else ''}: pass a smaller example or smaller "
            f"mini-batches; the model is as it was"
        ) from error


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # Of the allocators of the CPU, of MPS and of the libraries behind torch, which have no class.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)


_SHORT = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "ALLOC_FAILED",
)


@contextmanager
def normalising_by_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Put all of `model` in eval mode, but let batch norms use the mini-batch; update nothing.

    Dropout is off, and every batch norm (torch's and all that derive from it) normalises by the
    statistics of its input. The running statistics are away while the block runs, so save no
    checkpoint inside it. Frozen batch norms, and lazy ones that have seen no input, are left alone.

    >>> layer = nn.BatchNorm1d(1)
    >>> with normalising_by_batch_statistics(layer), torch.no_grad():
    ...     layer(torch.tensor([[1.0], [3.0]])).flatten()
    tensor([-1.0000,  1.0000])
    >>> layer.running_mean, layer.training
    (tensor([0.]), True)
    """
    borrowed = [
        (layer, layer.running_mean, layer.running_var)
        for layer in model.modules()
        if isinstance(layer, AnyBatchNorm)
        and not isinstance(layer, FrozenBatchNorm)
        and not isinstance(layer.running_mean, UninitializedBuffer)
    ]
    with evaluating(model):
        try:
            # Without running statistics torch takes those of the mini-batch, in eval mode too.
            for layer, _, _ in borrowed:
                layer.running_mean = layer.running_var = None
            yield
        finally:
            for layer, running_mean, running_var in borrowed:
                layer.running_mean, layer.running_var = running_mean, running_var


def watching(
    model: nn.Module, *, before: Before | None = None, after: After | None = None
) -> Block:
    """Call `before` and `after` around the forward of every module of `model`, itself included.

    `before(path, module, args, kwargs)` sees what the module's forward will get, and
    `after(path, module, args, kwargs, output)` what it returned; after a forward that raised,
    `output` is None. They look on: what they return is dropped. A shared module has one path,
    the first of `named_modules`; the path of `model` itself is "".

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with watching(model, before=lambda path, *_: print(f"{path!r} starts")):
    ...     _ = model(torch.zeros(1, 2))
    '' starts
    '0' starts
    '1' starts
    """
    return _hooked(_around(model.named_modules(), before, after))


@contextmanager
def stoppable() -> Iterator[Callable[[], NoReturn]]:
    """Give a function that ends the block: called in a hook, it stops the forward that runs.

    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    >>> with stoppable() as stop, watching(model, before=lambda path, *_: path == "1" and stop()):
    ...     _ = model(torch.zeros(1, 9))  # which does not fit the layer that never runs
    """
    ended = _StoppedError()

    def stop() -> NoReturn:
        raise ended

    try:
        yield stop
    except _StoppedError as error:
        if error is not ended:
            raise


class _StoppedError(BaseException):
    """Raised to stop a forward; a model that catches every Exception does not catch it."""


@contextmanager
def observing_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module]
) -> Iterator[dict[str, Moments]]:
    """Give a dictionary in which the moments of each layer's input are pooled, by its name.

    `layers` are modules of `model`. Channels are axis 1 of a layer's first argument. A layer that
    has not run has no entry. Raises ValueError for a layer that is not in `model`.

    >>> model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(1))
    >>> with observing_inputs(model, {"1": model[1]}) as seen:
    ...     _ = model(torch.tensor([[1.0], [2.0]])), model(torch.tensor([[3.0], [6.0]]))
    >>> seen["1"].count, seen["1"].mean.item()
    (4, 3.0)
    """
    seen: dict[str, Moments] = {}

    def pool(name: str, _layer: nn.Module, values: Tensor) -> None:
        moments = Moments.of(values)
        seen[name] = seen[name] + moments if name in seen else moments

    with seeing_inputs(model, layers, pool):
        yield seen


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give back the state of the random generators of torch, Python and numpy.

    Of torch's these are the CPU's and, where CUDA is in use, those of all its devices.

    >>> with preserved_random_state():
    ...     inside = torch.rand(3)
    >>> torch.equal(torch.rand(3), inside)
    True
    """
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002  the generator that others use
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


@contextmanager
def preserved_torch_settings() -> Iterator[None]:
    """Give torch's settings of the whole process back, which users' code may change for good.

    These are the default dtype and device, deterministic algorithms, the precision of matrix
    products, and whether gradients are recorded.

    >>> with preserved_torch_settings():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.zeros(1).dtype
    torch.float32
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    gradients = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warned)
        torch.set_grad_enabled(gradients)


@contextmanager
def _hooked(registrations: Iterable[Callable[[], RemovableHandle]]) -> Iterator[None]:
    """Register hooks, and afterwards remove them all, even if Ctrl-C comes in between."""
    handles = []
    try:
        try:
            for register in registrations:
                handles.append(register())  # noqa: PERF401  the list knows each at once
            yield
        finally:
            _remove(handles)
    finally:
        _remove(handles)  # again: it goes on where Ctrl-C stopped the first


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _around(
    modules: Iterable[tuple[str, nn.Module]],
    before: Before | None,
    after: After | None,
    *,
    lasting: bool = False,
) -> Iterator[Callable[[], RemovableHandle]]:
    for path, module in modules:
        if before is not None:
            early = _Lasting(_looking(before, path)) if lasting else _looking(before, path)
            yield partial(module.register_forward_pre_hook, early, with_kwargs=True)
        if after is not None:
            late = _Lasting(_looking(after, path)) if lasting else _looking(after, path)
            yield partial(module.register_forward_hook, late, with_kwargs=True, always_call=True)


def _looking(see: Callable[..., object], name: str) -> Callable[..., None]:
    """Return a hook that calls `see(name, ...)`; what that returns would change the module's."""

    def hook(*of_call: Any) -> None:
        see(name, *of_call)

    return hook


def _first_argument(
    name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    value = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the first argument of layer {name!r} ({type(layer).__name__}) is a "
            f"{type(value).__name__}: only inputs that are tensors have moments"
        )
    return value


def seeing_inputs(model: nn.Module, layers: Mapping[str, nn.Module], see: See) -> Block:
    """Call `see(name, layer, input)` with the first argument of each layer before it runs.

    What `see` writes into the layer is what the layer runs with. Raises ValueError for a layer that
    is not in `model`, and TypeError, while the model runs, for an input that is not a tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with seeing_inputs(model, {"1": model[1]}, lambda name, _, x: print(name, x.shape)):
    ...     _ = model(torch.zeros(1, 2))
    1 torch.Size([1, 3])
    """
    members = set(model.modules())
    for name, layer in layers.items():
        if layer not in members:
            raise ValueError(
                f"layer {name!r} ({type(layer).__name__}) is not in the model, so it would never "
                f"be seen: take the layers from the model that runs, not from a copy"
            )

    def before(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(name, layer, _first_argument(name, layer, args, kwargs))

    return _hooked(_around(layers.items(), before, None))


def watching_layers(
    layers: Mapping[str, nn.Module], *, before: Before | None = None, after: After | None = None
) -> Block:
    """Call `before` and `after` around the forward of these modules, as `watching` does for all.

    It may last as long as training does: copies and pickles of a module hold nothing of it. Inside
    a graph of torch.compile nothing can look on, and a call there raises RuntimeError.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with watching_layers({"1": model[1]}, before=lambda path, *_: print(path)):
    ...     _ = model(torch.zeros(1, 2))
    1
    """
    return _hooked(_around(layers.items(), before, after, lasting=True))


class _Nothing:
    """A hook that does nothing: what copies and pickles of a watched module have in its place."""

    def __call__(self, *of_call: Any) -> None:
        pass


class _Lasting:
    """A hook of one module, which stays out of copies of it, and refuses to be compiled."""

    def __init__(self, hook: Callable[..., object]) -> None:
        self._hook = hook

    def __call__(self, *of_call: Any) -> None:
        if _is_compiling() or frame_compiler() not in _NO_COMPILER:
            _refuse_to_be_compiled()
        self._hook(*of_call)

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()


_is_compiling = torch.compiler.is_compiling
_NO_COMPILER = (None, False)


def _refuse_to_be_compiled() -> None:
    raise RuntimeError(
        "the model was compiled around a hook that looks at it, which no compiled graph calls: "
        "give what torch.compile(model) returns, rather than `model`, to whatever looks on, and do "
        "not call model.compile()"
    )


def seeing_gradients(tensors: Mapping[str, Tensor], see: Callable[[str, Tensor], object]) -> Block:
    """Call `see(name, gradient)` when a backward has the gradient of one of these tensors.

    Tensors that need no gradient are left alone.

    >>> x = torch.ones(1, requires_grad=True)
    >>> with seeing_gradients({"x": x}, print):
    ...     (2 * x).backward()
    x tensor([2.])
    """
    return _hooked(
        partial(tensor.register_hook, _looking(see, name))
        for name, tensor in tensors.items()
        if tensor.requires_grad
    )


@contextmanager
def running_eagerly() -> Iterator[None]:
    """Run what torch.compile compiled as it was written, so that hooks inside it are called.

    >>> with running_eagerly():
    ...     nn.ReLU()(torch.ones(1))
    tensor([1.])
    """
    if not compiler_is_loaded():  # nothing is compiled
        yield
        return
    stance = None
    try:
        try:
            stance = torch.compiler.set_stance("force_eager")
            yield
        finally:
            if stance is not None:
                stance.__exit__(None, None, None)
    finally:
        if stance is not None:  # again: Ctrl-C may have come before the first
            stance.__exit__(None, None, None)


def counting_training_steps(model: nn.Module, begin: Callable[[], object]) -> Block:
    """Call `begin()` before each forward of `model` in training mode, as cheaply as a hook can.

    A forward that activation checkpointing runs again in a backward is not a new one. It may last,
    and refuses to be compiled, as `watching_layers`.

    >>> model = nn.ReLU()
    >>> with counting_training_steps(model, lambda: print("begins")):
    ...     _ = model(torch.ones(1)), model.eval()(torch.ones(1))
    begins
    """
    return _hooked([partial(model.register_forward_pre_hook, _Beginning(begin))])


class _Beginning(_Lasting):
    """Runs in every step of a training, with little else in the caches: each call counts."""

    def __call__(self, module: nn.Module, _args: object) -> None:
        if _is_compiling() or frame_compiler() not in _NO_COMPILER:
            _refuse_to_be_compiled()
        if module.training and current_backward() == -1:
            self._hook()


class LongBlock:
    """Context managers that last longer than a block of code: entered one by one until `close`.

    >>> model, block = nn.ReLU(), LongBlock()
    >>> block.enter(watching(model, before=lambda *_: print("runs")))
    >>> _ = model(torch.ones(1)), block.close(), model(torch.ones(1))
    runs
    """

    def __init__(self) -> None:
        self._entered: list[tuple[Block, None]] = []

    def enter(self, manager: Block) -> None:
        """Enter a context manager."""
        self._entered.append((manager, manager.__enter__()))  # at once, for Ctrl-C in between

    def close(self) -> None:
        """Leave all of them; where Ctrl-C stops it halfway, a second call goes on."""
        for manager, _ in reversed(self._entered):
            manager.__exit__(None, None, None)  # of a generator that has ended this does nothing
        self._entered.clear()


def set_mode(model: Model, *, training: bool) -> Model:
    """Return `model`, in training or eval mode, as its own `train` method has it.

    >>> set_mode(nn.Sequential(nn.Dropout()), training=False)[0].training
    False
    """
    return model.train(training)


def follow_mode(module: Model, like: nn.Module) -> Model:
    """Return `module`, with its own flag `training` as that of `like`; its children stay.

    >>> follow_mode(nn.Dropout(), nn.ReLU().eval()).training
    False
    """
    module.training = like.training
    return module


def stop_training(module: nn.Module) -> None:
    """Put the module and all inside in eval mode, whatever its own `train` would do.

    >>> layer = nn.Sequential(nn.BatchNorm1d(1))
    >>> stop_training(layer)
    >>> layer[0].training
    False
    """
    for part in module.modules():
        part.training = False
