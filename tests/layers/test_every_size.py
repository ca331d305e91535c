"""The same call does the same at every size, torch's layer being the oracle."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit import layers
from bnkit.functional import batch_norm

SIZES = {"small": (4, 3, 5), "large": (64, 64, 96)}  # 240 bytes, and 1.5 MB


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def poisoned(x, value):
    x = x.clone()
    x[0, 0, 0] = value
    return x


def given(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def parameter(*shape, dtype=torch.float32):
    return nn.Parameter(torch.ones(*shape, dtype=dtype))


CALLS = {
    "a view of the output": lambda m, x: m(x.transpose(1, 2).contiguous().transpose(1, 2)).view(
        len(x), -1
    ),
    "gaps in memory": lambda m, x: m(x.repeat(1, 1, 2)[..., ::2]),
    "one sample N times": lambda m, x: m(x[:1].expand_as(x)),
    "eps 0": lambda m, x: given(m, eps=0.0)(x),
    "eps below 0": lambda m, x: given(m, eps=-1.0)(x),
    "float64": lambda m, x: m(x.double()),
    "bfloat16": lambda m, x: m(x.bfloat16()),
    "integers": lambda m, x: m(x.long()),
    "complex": lambda m, x: m(x.to(torch.complex64)),
    "sparse": lambda m, x: m(x.to_sparse()),
    "no running_var": lambda m, x: given(m, running_var=None)(x),
    "no running_mean": lambda m, x: given(m, running_mean=None)(x),
    "no count": lambda m, x: given(m, num_batches_tracked=None)(x),
    "no count, cumulative": lambda m, x: given(m, num_batches_tracked=None, momentum=None)(x),
    "cumulative": lambda m, x: given(m, momentum=None)(x) + m(x),
    "momentum 2": lambda m, x: given(m, momentum=2.0)(x),
    "no weight": lambda m, x: given(m, weight=None)(x),
    "no bias": lambda m, x: given(m, bias=None)(x),
    "a channel too many": lambda m, x: m(torch.cat([x, x[:, :1]], 1)),
    "a weight too many": lambda m, x: given(m, weight=parameter(x.shape[1] + 1))(x),
    "a mean too many": lambda m, x: given(m, running_mean=torch.zeros(x.shape[1] + 1))(x),
    "a weight of another dtype": lambda m, x: given(
        m, weight=parameter(x.shape[1], dtype=torch.float64)
    )(x),
    "a mean of another dtype": lambda m, x: given(m, running_mean=m.running_mean.double())(x),
    "inf": lambda m, x: m(poisoned(x, torch.inf)),
    "nan": lambda m, x: m(poisoned(x, torch.nan)),
    "one axis": lambda m, x: m(x[:, 0, 0]),
    "no rows": lambda m, x: m(x[:0]),
    "one value per channel": lambda m, x: m(x[:1, :, :1]),
}


def outcome(call, layer, x):
    try:
        return call(layer, x), None
    except Exception as error:  # noqa: BLE001  whatever torch raises
        return None, type(error)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_calls_give_the_same_or_raise_the_same(call, training, shape):
    theirs = nn.BatchNorm1d(shape[1]).train(training)
    ours = bnkit.BatchNorm1d(shape[1], guard=False).train(training)
    expected, error = outcome(call, theirs, randn(*shape))
    y, raised = outcome(call, ours, randn(*shape))
    assert raised == error
    if error is not None:
        return
    bound = 2e-2 if y.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y, expected, rtol=bound, atol=bound, equal_nan=True)
    assert y.stride() == expected.stride()
    for name, value in theirs.state_dict().items():
        found = ours.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5, equal_nan=True)


GRADIENTS = {
    "batched": lambda y, xs: torch.autograd.grad(
        y, xs, torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True
    ),
    "of the gradient": lambda y, xs: torch.autograd.grad(
        torch.autograd.grad(y.square().sum(), xs, create_graph=True)[0].square().sum(), xs
    ),
}


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_every_kind(gradients, training, shape):
    found = []
    for layer in (nn.BatchNorm1d(shape[1]), bnkit.BatchNorm1d(shape[1])):
        layer.double().train(training)
        x = randn(*shape, dtype=torch.float64).requires_grad_()
        found.append(gradients(layer(x), (x, layer.weight)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_a_vectorised_jacobian(training):
    found = []
    for layer in (nn.BatchNorm1d(3), bnkit.BatchNorm1d(3)):
        layer.double().train(training)
        x = randn(4, 3, 5, dtype=torch.float64)
        found.append(torch.autograd.functional.jacobian(layer, x, vectorize=True))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mapped", ["weight", "bias", "residual"])
def test_vmap_over_one_argument_alone(mapped, training, shape):
    x, c = randn(*shape, dtype=torch.float64), shape[1]
    fixed = {"weight": torch.ones(c), "bias": torch.zeros(c), "residual": torch.zeros(shape)}
    fixed = {name: value.double() for name, value in fixed.items()}
    several = torch.stack([fixed[mapped] + n for n in range(3)])

    def y(value):
        args = {**fixed, mapped: value}
        statistics = (None, None) if training else (torch.zeros(c).double(), torch.ones(c).double())
        affine = args["weight"], args["bias"]
        return batch_norm(x, *statistics, *affine, training, residual=args["residual"])

    expected = torch.stack([y(value) for value in several])
    torch.testing.assert_close(torch.vmap(y)(several), expected)


@pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
def test_copies_and_views_of_an_output_are_as_torchs(shape):
    x = randn(*shape)
    theirs, ours = nn.BatchNorm1d(shape[1]), bnkit.BatchNorm1d(shape[1])
    for layer in (theirs, ours):
        y = layer(x.clone().requires_grad_())
        y.mul_(2).sum().backward()  # writing into the output is allowed
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-2)
    assert copy.deepcopy(ours)(x).is_contiguous()


VARIABLE = {
    "plain": bnkit.BatchNorm1d,
    "activated": lambda n: bnkit.BatchNorm1d(n, activation="relu"),
    "ghost": lambda n: layers.GhostBatchNorm1d(n, virtual_batch_size=4),
    "renorm": layers.BatchRenorm1d,
    "accumulated": lambda n: layers.AccumulatedBatchNorm1d(n, micro_batches=2),
    "masked": layers.MaskedBatchNorm1d,
    "domains": lambda n: given(layers.DomainBatchNorm1d(n, domains=["one", "other"]), domain="one"),
    "sync": layers.SyncBatchNorm1d,
    "frozen": layers.FrozenBatchNorm1d,
}


# torch's compiler does what torch warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", VARIABLE)
def test_compiled_for_variable_sizes_it_computes_as_uncompiled(kind):
    layer = VARIABLE[kind](4)
    plain = copy.deepcopy(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, dynamic=True, backend="eager")
    for shape in ((8, 4, 5), (12, 4, 7), (9, 4, 11)):  # 9 rows leave one over
        found = []
        for each in (compiled, plain):
            x = randn(*shape).requires_grad_()
            with bnkit.mask(randn(shape[0], shape[2]) < 0.5):
                y = each(x)
            found += [(y, *torch.autograd.grad(y.square().sum(), x))]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.state_dict(), plain.state_dict())
