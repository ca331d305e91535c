"""Adversarial propagation gives each domain a batch norm with gamma and beta of its own."""

import copy

import torch
from situations import net, rows
from torch import nn

import bnkit

torch.manual_seed(0)


class ByHand(nn.Module):
    """The same network with a batch norm of torch's for each domain."""

    def __init__(self, plain):
        super().__init__()
        self.before, norm, *rest = copy.deepcopy(plain)
        self.norms = nn.ModuleDict({name: copy.deepcopy(norm) for name in ("clean", "adversarial")})
        self.rest = nn.Sequential(*rest)

    def forward(self, x, name):
        return self.rest(self.norms[name](self.before(x)))


plain = net()
model = bnkit.convert(plain, "domains", domains=("clean", "adversarial"), affine="each")
other = ByHand(plain)
optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, other)]
for clean in rows(20):
    losses = [0.0, 0.0]
    for name, x in (("clean", clean), ("adversarial", clean.abs())):
        with bnkit.domain(model, name):
            losses[0] += model(x).square().mean()
        losses[1] += other(x, name).square().mean()
    for loss, optimizer in zip(losses, optimizers, strict=True):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval(), other.eval()
assert not torch.allclose(model[1].weight, model[1].weight_adversarial, atol=1e-4)
for name in ("clean", "adversarial"):
    with bnkit.domain(model, name):
        torch.testing.assert_close(model(clean), other(clean, name), rtol=1e-4, atol=1e-5)
        shipped = bnkit.fold(model, clean)
    torch.testing.assert_close(shipped(clean), other(clean, name), rtol=1e-4, atol=1e-5)
