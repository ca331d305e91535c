"""Batch norm put into a model by hooks, with torch's layers: what a twin is compared with."""

import torch
from torch import nn

from bnkit.dataflow import duplicate
from zoo.checks import call

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def normalised_by_hooks(plain, paths, placement):
    """Return a copy with torch's batch norms, between modules, in float64."""
    net = duplicate(plain)
    dense_only = not any(isinstance(m, nn.modules.conv._ConvNd) for m in plain.modules())
    for path in paths:
        layer = net.get_submodule(path)
        weighted = hasattr(layer, "in_features") or hasattr(layer, "in_channels")
        last = isinstance(layer, nn.Linear) or (dense_only and not weighted)
        norm = ByHand(features_last=last)
        if placement == "after_activation" and weighted:
            layer.register_forward_pre_hook(norm.of_input, with_kwargs=True)
        else:
            layer.register_forward_hook(norm.of_output, prepend=True)
    return net


class ByHand:
    """One of torch's batch norms, made when the first values come."""

    def __init__(self, *, features_last):
        self.features_last, self.norm = features_last, None

    def of_output(self, module, _inputs, output):
        return self(output, training=module.training)

    def of_input(self, module, args, kwargs):
        if args:
            return (self(args[0], training=module.training), *args[1:]), kwargs
        return args, {**kwargs, "input": self(kwargs["input"], training=module.training)}

    def __call__(self, x, *, training):
        flat = x.reshape(-1, x.shape[-1]) if self.features_last else x
        if self.norm is None:
            self.norm = BATCH_NORMS[flat.dim()](flat.shape[1], dtype=torch.float64)
        return self.norm.train(training)(flat).reshape(x.shape)


def gradients(net, example):
    """Return the gradient of each parameter that has one, by its name."""
    net.zero_grad()
    loss = sum(y.square().sum() for y in call(net, example) if y.requires_grad)
    if isinstance(loss, torch.Tensor):
        loss.backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
