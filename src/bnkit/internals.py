"""What torch has under no public name: each use with its reason, and what serves without it.

Nothing else in bnkit names what torch keeps private. Each name is looked up so that a torch
without it still imports bnkit and runs its layers; tests/test_internals.py takes them away one by
one and says in which versions of torch they were seen.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# --- the bases of torch's layers, by which a layer of any rank is recognised

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
    from torch.nn.modules.instancenorm import _InstanceNorm

    AnyBatchNorm = _BatchNorm
    AnyConv = _ConvNd
    AnyTransposedConv = _ConvTransposeNd
    AnyInstanceNorm = _InstanceNorm
else:  # what is public leads there, whatever they are called
    AnyBatchNorm = nn.BatchNorm1d.__base__
    AnyConv = nn.Conv1d.__base__
    AnyTransposedConv = nn.ConvTranspose1d.__base__
    AnyInstanceNorm = nn.InstanceNorm1d.__base__

# --- what layers of torch call in their forward

RANK_CHECK = "_check_input_dim"  # a batch norm's, which each rank overrides
FORWARDS = ("forward", "_conv_forward")  # a class that overrides none computes what torch does


def check_rank(layer: nn.Module, input: Tensor) -> None:
    """Raise ValueError, as torch does, for an input of a number of axes that `layer` does not take.

    Without torch's check any number passes, as in torch.nn.functional.batch_norm.

    >>> check_rank(nn.BatchNorm1d(2), torch.ones(2))
    Traceback (most recent call last):
    ValueError: expected 2D or 3D input (got 1D input)
    """
    check = getattr(layer, RANK_CHECK, None)
    if check is not None:
        check(input)


# --- in what a call runs. Each is asked in every forward: plain functions of C, without arguments


def _function(path: str, otherwise: Any) -> Callable[[], Any]:
    """Return the function of torch at `path`, or one that returns `otherwise` where it is not."""
    try:
        found: Callable[[], Any] = attrgetter(path)(torch)
    except AttributeError:
        return lambda: otherwise
    return found


# The number of the backward that runs, −1 outside: activation checkpointing calls forwards there.
# Without it a checkpointed mini-batch enters the running statistics twice.
current_backward = _function("_C._current_graph_task_id", -1)
# How many modes look at each operation (torch.utils._python_dispatch). Without it they see none of
# the kernels' work, which is right all the same.
dispatch_modes = _function("_C._len_torch_dispatch_stack", 0)
# The innermost transformation of torch.func, None outside. Without it all calls are made ready for
# one, which is right and slower.
transformation = _function("_C._functorch.peek_interpreter_stack", "unknown")
# What compiles the frames of Python, None or False where nothing does. Without it, a hook that is
# compiled away says nothing about it.
frame_compiler = _function("_C._dynamo.eval_frame.get_eval_frame_callback", None)


def is_forward_mode() -> bool:
    """Return whether forward-mode differentiation is on.

    Without torch's counter of levels, torch itself refuses the kernels there, with an error.

    >>> with torch.autograd.forward_ad.dual_level():
    ...     is_forward_mode()
    True
    """
    return getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


# torch.compile takes it for granted from here on. Documented, though its name is private.
assume: Callable[[bool], object] = getattr(torch, "_check", bool)


# --- what asks whether torch.jit scripts or traces, without types and in no list of exports

is_scripting: Callable[[], bool] = torch.jit.is_scripting  # type: ignore[attr-defined]
is_jit_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


# --- what torch.compile wraps


def compiler_is_loaded() -> bool:
    """Return whether anything can be compiled: importing the compiler takes two seconds."""
    return "torch._dynamo" in sys.modules


def inside_compiled(module: nn.Module) -> nn.Module | None:
    """Return what torch.compile was given to make `module`, None where it did not make it.

    Without torch's class for it, a compiled model is one more wrapper.

    >>> inside_compiled(nn.ReLU()) is None
    True
    """
    kind = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    if kind is None or not isinstance(module, kind):
        return None
    inside: nn.Module | None = getattr(module, "_orig_mod", None)
    return inside


# --- what modules register


def children_of(module: nn.Module) -> Mapping[str, nn.Module | None]:
    """Return the modules that `module` holds, by name, one that it holds twice under both names.

    named_children, which serves without it, names each once, and takes ten times as long.

    >>> layer = nn.ReLU()
    >>> list(children_of(nn.Sequential(layer, layer)))
    ['0', '1']
    """
    children: Mapping[str, nn.Module | None] | None = getattr(module, "_modules", None)
    return dict(module.named_children()) if children is None else children


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return the child of this name, None where it has none; asked while attributes are looked up.

    >>> child_of(nn.Sequential(nn.ReLU()), "0"), child_of(nn.ReLU(), "0")
    (ReLU(), None)
    """
    children: Mapping[str, nn.Module | None] = vars(module).get("_modules", {})
    return children.get(name)


def has_hooks(module: nn.Module, *, before: bool = True) -> bool:
    """Return whether hooks are registered on this module; without `before`, those that see outputs.

    torch lists hooks nowhere in public: without its tables there seem to be none.

    >>> layer = nn.ReLU()
    >>> handle = layer.register_forward_pre_hook(print)
    >>> has_hooks(layer), has_hooks(layer, before=False)
    (True, False)
    """
    kinds = ["_forward_hooks", "_backward_hooks"]
    kinds += ["_forward_pre_hooks", "_backward_pre_hooks"] if before else []
    return any(getattr(module, kind, ()) for kind in kinds)


def move_call_hooks(module: nn.Module, to: nn.Module) -> None:
    """Take the hooks on calls of `module` from it, and give them to `to`, which loses its own.

    >>> layer, other = nn.ReLU(), nn.ReLU()
    >>> handle = layer.register_forward_pre_hook(print)
    >>> move_call_hooks(layer, other)
    >>> has_hooks(layer), has_hooks(other)
    (False, True)
    """
    new = vars(nn.Module())
    for name in new:
        if name.startswith(_CALL_HOOKS) and name in vars(module):
            vars(to)[name], vars(module)[name] = vars(module)[name], new[name]


_CALL_HOOKS = ("_forward", "_backward", "_is_full_backward_hook")


def registered_names(module: nn.Module) -> list[str]:
    """Return the names of the module's own parameters and buffers, those that are None included.

    named_parameters and named_buffers, which serve without it, leave those out.

    >>> registered_names(nn.BatchNorm1d(1, affine=False, track_running_stats=False))
    ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    tables = [getattr(module, name, None) for name in _TABLES]
    if None in tables:
        named = (module.named_parameters, module.named_buffers)
        tables = [dict(names(recurse=False)) for names in named]
    return [name for table in tables for name in table or ()]


def take_over_registered(module: nn.Module, made: nn.Module, names: frozenset[str]) -> None:
    """Give `module` the parameters and buffers of `made`; its own stay, but for these `names`.

    In the order of `made`, and what others have registered last, as it was. There is no public way
    to reorder a state dict: without torch's tables this raises KeyError.

    >>> layer = nn.LayerNorm(1)
    >>> take_over_registered(layer, nn.BatchNorm1d(1, affine=False), frozenset(["weight", "bias"]))
    >>> list(layer.state_dict())
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    old, new = vars(module), vars(made)
    for table in _TABLES:
        rest = {name: value for name, value in old[table].items() if name not in names}
        old[table] = {**new[table], **rest}
    old[_NOT_SAVED] = (old[_NOT_SAVED] - names) | new[_NOT_SAVED]


_TABLES = ("_parameters", "_buffers")
_NOT_SAVED = "_non_persistent_buffers_set"


def with_versions(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with the version of each of the model's classes, which some ask for.

    torch keeps them beside the tensors, and files do not; without them classes take the first.

    >>> layer = nn.BatchNorm1d(1)
    >>> "_metadata" in vars(with_versions({}, layer))
    True
    """
    versioned: OrderedDict[str, Tensor] = OrderedDict(state)
    versions = getattr(model.state_dict(), "_metadata", None)
    if versions is not None:
        vars(versioned)["_metadata"] = versions
    return versioned


# --- what tensors are made of


def version_of(tensor: Tensor) -> int:
    """Return the number that grows with each write into the tensor; torch counts none in some.

    Without it what is written in place is not told from what was there before.
    """
    return 0 if tensor.is_inference() else getattr(tensor, "_version", 0)


def memory_of(tensor: Tensor) -> int:
    """Return a number that tensors have in common which share memory.

    Without the identity of a storage, its address, which storages without bytes have in common.
    """
    try:
        storage = tensor.untyped_storage()
        return int(getattr(storage, "_cdata", None) or storage.data_ptr())
    except RuntimeError:  # sparse, or inside torch.vmap
        return id(tensor)


# --- trees of tuples, lists, dicts and what others registered, whose functions have no public name


def replace_tensors(tree: Any, replacement: Callable[[Tensor], Any]) -> Any:
    """Return `tree` with `replacement(tensor)` for each tensor in its tuples, lists and dicts.

    >>> replace_tensors({"x": (torch.ones(2), 3)}, len)
    {'x': (2, 3)}
    """
    if isinstance(tree, Tensor):  # as most trees are, and to walk one takes ten times as long
        return replacement(tree)
    if _trees is not None:
        return _trees.tree_map_only(Tensor, replacement, tree)
    return _rebuilt(tree, replacement)


def leaves_of(tree: Any) -> tuple[list[Any], str]:
    """Return what is in the tuples, lists and dicts of `tree`, and its structure as a text.

    >>> leaves_of({"x": (1, [2])})[0]
    [1, 2]
    """
    if _trees is not None:
        leaves, structure = _trees.tree_flatten(tree)
        return leaves, str(structure)
    if isinstance(tree, dict | list | tuple):
        inside = [leaves_of(item) for item in (tree.values() if isinstance(tree, dict) else tree)]
        keys = list(tree) if isinstance(tree, dict) else ""
        structure = f"{type(tree).__name__}({keys}, {', '.join(text for _, text in inside)})"
        return [leaf for leaves, _ in inside for leaf in leaves], structure
    return [tree], "*"


_trees: Any = getattr(torch.utils, "_pytree", None)


def _rebuilt(tree: Any, replacement: Callable[[Tensor], Any]) -> Any:
    def each(items: Iterable[Any]) -> list[Any]:
        return [replace_tensors(item, replacement) for item in items]

    if isinstance(tree, dict):
        return type(tree)(zip(tree, each(tree.values()), strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a named tuple
        return type(tree)(*each(tree))
    return type(tree)(each(tree)) if isinstance(tree, list | tuple) else tree


# --- groups of processes


def time_limit(group: dist.ProcessGroup) -> timedelta:
    """Return how long the ranks of `group` wait for each other on the CPU.

    A group does not say it in public: without it, half an hour, with which torch begins.
    """
    try:
        backend = group._get_backend(torch.device("cpu"))  # noqa: SLF001  see above
        limit: timedelta = backend.options._timeout  # noqa: SLF001
    except AttributeError:
        return timedelta(minutes=30)
    return limit


# --- what torch.distributed puts into modules that it shards


def is_state_of_sharding(attribute: str) -> bool:
    """Return whether a module holds the state of fully_shard and its like under this name.

    >>> is_state_of_sharding("weight")
    False
    """
    return attribute.startswith("__composable_api_state_key")


def is_distributed_hook(held: Any) -> bool:
    """Return whether what a module's table of hooks holds is of torch.distributed."""
    hook = getattr(held, "hook", held)  # a hook before loading is wrapped
    return callable(hook) and str(getattr(hook, "__module__", "")).startswith("torch.distributed")
