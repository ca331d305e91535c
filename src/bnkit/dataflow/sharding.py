"""Models whose parameters lie on several ranks: which they are, and plain copies of them."""

import copy
import sys
from typing import Any

from torch import Tensor, nn

from bnkit.internals import is_distributed_hook, is_state_of_sharding


def is_sharded(model: nn.Module) -> bool:
    """Return whether ranks hold parts of the model: FSDP2's fully_shard, or tensors over a mesh.

    >>> is_sharded(nn.Linear(2, 2))
    False
    """
    kind: Any = _class_of("torch.distributed.fsdp", "FSDPModule")
    part: Any = _class_of("torch.distributed.tensor", "DTensor")
    modules = [*model.modules()] if isinstance(model, nn.Module) else []
    held = [*model.parameters(), *model.buffers()] if modules and part != () else []
    return any(isinstance(m, kind) for m in modules) or any(isinstance(t, part) for t in held)


def refuse_sharded(model: nn.Module, *, gathers: bool) -> None:
    """Raise TypeError, with the way out, for a sharded model, or one that a verb cannot gather."""
    wrapper: Any = _class_of("torch.distributed.fsdp", "FullyShardedDataParallel")
    wrapped = any(isinstance(module, wrapper) for module in model.modules())
    if wrapped or (not gathers and is_sharded(model)):
        raise TypeError(
            f"`model` ({type(model).__name__}) is sharded: each rank holds a part of its "
            f"parameters. Gather them into a plain model, on all ranks: "
            f"plain.load_state_dict(get_model_state_dict(model, options=StateDictOptions("
            f"full_state_dict=True))), both of torch.distributed.checkpoint.state_dict, and pass "
            f"that; running statistics go back by model.load_state_dict(dict("
            f"plain.named_buffers()), strict=False)"
        )


def copy_without_shards(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put plain copies of a sharded model's modules, with all values in them, into deepcopy's memo.

    All ranks must call it, since each brings its parts. Modules get their class from before
    fully_shard, and lose the hooks by which torch.distributed gathers and scatters: what they
    compute without it is the same.
    """
    kind: Any = _class_of("torch.distributed.fsdp", "FSDPModule")
    for module in model.modules():
        if isinstance(module, kind):
            module.reshard()  # after a forward the root may still hold what it gathered
    for shard in (shard for module in model.modules() for shard in _shards(module)):
        whole = shard.detach().full_tensor().clone()
        wanted = shard.requires_grad
        memo[id(shard)] = nn.Parameter(whole, wanted) if isinstance(shard, nn.Parameter) else whole
    modules = list(model.modules())
    for module in modules:
        plain: Any = next(each for each in type(module).__mro__ if not issubclass(each, kind))
        memo[id(module)] = plain.__new__(plain)
    for module in modules:
        vars(memo[id(module)]).update(copy.deepcopy(own_attributes(module), memo))


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds, without what torch.distributed has put there to shard it.

    >>> own_attributes(nn.Linear(2, 2))["in_features"]
    2
    """
    return {
        name: _own_hooks(value) if "hooks" in name else value
        for name, value in vars(module).items()
        if not is_state_of_sharding(name)
    }


def _own_hooks(table: Any) -> Any:
    """Return a module's table of hooks without those of torch.distributed."""
    if not isinstance(table, dict):
        return table
    kept = {key: each for key, each in table.items() if not is_distributed_hook(each)}
    return table if len(kept) == len(table) else type(table)(kept)


def _shards(module: nn.Module) -> list[Any]:
    """Return the tensors of the module itself of which this rank holds a part."""
    kind: Any = _class_of("torch.distributed.tensor", "DTensor")
    if kind == ():
        return []
    held: list[Tensor] = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return [tensor for tensor in held if isinstance(tensor, kind)]


def _class_of(module: str, name: str) -> Any:
    """Return a class of torch's that is there once its module is imported, else no class at all."""
    return getattr(sys.modules.get(module), name, ())
