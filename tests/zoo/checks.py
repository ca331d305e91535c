"""What tests on all models of the zoo ask: what came out, what was touched, what is shared."""

import random

import numpy as np
import torch

from bnkit.dataflow import as_call
from bnkit.dataflow.tensors import replace_tensors, tensors_in


def call(model, example, *, seed=0):
    """Return all numbers that the model gives for the example, as a list of tensors."""
    args, kwargs = as_call(example)
    torch.manual_seed(seed)
    result = model(*args, **kwargs)
    result = result() if callable(result) else result
    return tensors_in(result) or [torch.as_tensor(result)]


def converted(example, dtype):
    return replace_tensors(example, lambda t: t.to(dtype) if t.is_floating_point() else t)


def fingerprint(model):
    """Return all that a model is: two of them are equal if nothing about it has changed."""
    return [
        [_of_module(path, module) for path, module in model.named_modules(remove_duplicate=False)],
        [_of_tensor(name, tensor) for name, tensor in model.named_parameters()],
        [_of_tensor(name, tensor) for name, tensor in model.named_buffers()],
    ]


def _of_module(path, module):
    hooks = {key: list(value.items()) for key, value in vars(module).items() if "hooks" in key}
    own = {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")}
    return path, id(module), type(module), module.training, hooks, own


def _of_tensor(name, tensor):
    gradient = None if tensor.grad is None else tensor.grad.tolist()
    facts = tensor.dtype, tensor.requires_grad, tensor._version, tensor.data_ptr(), gradient
    return name, id(tensor), facts, tensor.tolist()


def random_state():
    """Return the state of all random generators, as something that can be compared."""
    numpy = np.random.get_state()  # noqa: NPY002  the generator that models use
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in numpy]


def held_tensors(model):
    """Return every tensor that a model holds in parameters, buffers, gradients and attributes."""
    tensors = [t for module in model.modules() for t in tensors_in(vars(module))]
    return tensors + [t.grad for t in tensors if t.is_leaf and t.grad is not None]


def memory(model):
    return {t.untyped_storage().data_ptr() for t in held_tensors(model)} - {0}
