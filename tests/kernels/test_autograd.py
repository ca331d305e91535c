"""The kernels inside of torch: gradients of every order, transformations, compilers, modes."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from bnkit.functional import batch_norm
from bnkit.kernels import choice, operators
from bnkit.kernels.activations import ACTIVATIONS, find_activation
from bnkit.kernels.call import Call
from bnkit.layers import BatchNorm1d, BatchNorm2d

KERNELS = pytest.mark.parametrize("kernel", ["reference", "core"])
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
PARTS = pytest.mark.parametrize(
    "parts",
    [(), ("weight",), ("bias", "residual"), ("weight", "bias", "residual")],
    ids=lambda parts: " ".join(parts) or "x alone",
)


@pytest.fixture(params=["core", "reference"])
def forced(request, monkeypatch):
    """Every tensor, however small, is normalised by this kernel."""
    monkeypatch.setattr(choice, "forced", request.param)
    return request.param


def draw(*parts, dtype=torch.float64, seed=0):
    """Return x, running statistics and the other terms, some of which may be None."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    terms = {"weight": normal(3), "bias": normal(3), "residual": normal(4, 3, 2, 2)}
    running = normal(3).detach(), normal(3).detach().square() + 0.5
    return normal(4, 3, 2, 2), running, {name: terms[name] for name in parts}


def by_torch(x, running, terms, *, training, activation):
    weight = terms.get("weight", torch.ones(3, dtype=x.dtype))  # torch cannot do without it
    statistics = (None, None) if training else running
    z = F.batch_norm(x, *statistics, weight, terms.get("bias"), training)
    return find_activation(activation).function(z + terms.get("residual", 0))


def by_kernel(x, running, terms, *, training, activation):
    statistics = (None, None) if training else running
    return batch_norm(x, *statistics, training=training, activation=activation, **terms)


@pytest.mark.usefixtures("forced")
@TRAINING
@PARTS
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_values_gradients_and_their_gradients_are_those_of_torch(activation, parts, training):
    x, running, terms = draw(*parts)
    leaves = [x, *terms.values()]
    results = []
    for compute in (by_kernel, by_torch):
        y = compute(x, running, terms, training=training, activation=activation)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append((y, *first, *second))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("forced")
@TRAINING
def test_gradients_of_any_order_are_those_of_the_function(training):
    x, running, terms = draw("weight", "bias", "residual")

    def function(*leaves):
        given = dict(zip(terms, leaves[1:], strict=True))
        return by_kernel(leaves[0], running, given, training=training, activation="silu")

    assert gradcheck(function, (x, *terms.values()))
    assert gradgradcheck(function, (x, *terms.values()))


@pytest.mark.usefixtures("forced")
def test_a_gradient_penalty_trains():
    layer, x = BatchNorm2d(3, activation="relu").double(), draw()[0]
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).double()
    penalties = []
    for model in (layer, plain):
        (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        (slope.norm() - 1).square().backward()
        penalties.append(next(model.parameters()).grad)
    torch.testing.assert_close(*penalties)


@KERNELS
@TRAINING
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_operators_are_what_they_say(kernel, training, activation):
    x, running, terms = draw("weight", "bias", "residual", dtype=torch.float32)
    call = Call(x, *running, *terms.values(), 1e-5, activation, training, kernel)
    if training:
        torch.library.opcheck(operators.forward, call._replace(mean=None, variance=None))
    else:
        torch.library.opcheck(operators.inference, call)
    given = [t.detach() for t in call[:6]]
    dy = torch.ones_like(given[0])
    torch.library.opcheck(operators.backward, (dy, *given, *call[6:]))


@pytest.mark.usefixtures("forced")
@TRAINING
@pytest.mark.filterwarnings("ignore:.*lru_cache.*:UserWarning")  # in torch's own tracing
def test_compiled_without_a_break_it_does_the_same(training):
    layer = BatchNorm2d(3, activation="relu").train(training)
    same, x = copy.deepcopy(layer), draw(dtype=torch.float32)[0]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        (ours,) = torch.autograd.grad(compiled(x, x).square().sum(), x)
        (eager,) = torch.autograd.grad(same(x, x).square().sum(), x)
        torch.testing.assert_close(ours, eager)
    for name, value in same.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


@pytest.fixture
def own_choice(monkeypatch):
    monkeypatch.setattr(choice, "forced", "")


@pytest.mark.usefixtures("own_choice")
def test_a_large_input_is_compiled_around_the_operator():
    layer = BatchNorm1d(64, activation="relu")
    x = torch.randn(60, 64)
    graphs = []

    def backend(module, _):
        graphs.append(module.code)
        return module

    y = torch.compile(layer, fullgraph=True, backend=backend)(x)
    assert "bnkit.batch_norm_forward" in graphs[0]
    layer.train()
    torch.testing.assert_close(y, torch.relu(nn.BatchNorm1d(64)(x)), atol=1e-4, rtol=0)


def test_an_exported_program_holds_torch_s_operations_only():
    layer, x = BatchNorm1d(64, activation="relu").eval(), torch.randn(60, 64)
    program = torch.export.export(layer, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.batch_norm.default", "aten.relu.default"]
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.usefixtures("forced")
@TRAINING
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_torch_func_differentiates_and_batches(training, activation):
    x, running, terms = draw("weight", "bias", "residual")

    def loss(weight, bias, compute=by_kernel):
        given = {**terms, "weight": weight, "bias": bias}
        return compute(x, running, given, training=training, activation=activation).square().sum()

    def loss_of_torch(weight, bias):
        return loss(weight, bias, by_torch)

    weights, biases = torch.randn(2, 5, 3, dtype=torch.float64)
    for transform in (grad, jacrev, lambda f: grad(lambda w, b: grad(f)(w, b).square().sum())):
        ours, theirs = transform(loss), transform(loss_of_torch)
        torch.testing.assert_close(ours(weights[0], biases[0]), theirs(weights[0], biases[0]))
        torch.testing.assert_close(vmap(ours)(weights, biases), vmap(theirs)(weights, biases))


@pytest.mark.usefixtures("forced")
@TRAINING
@PARTS
def test_vmap_folds_the_models_into_the_channels(training, parts):
    x, running, terms = draw(*parts)
    xs = torch.randn(5, *x.shape, dtype=torch.float64)

    def gradients(x, compute):
        def loss(x):
            return compute(x, running, terms, training=training, activation="silu").square().sum()

        return grad(loss)(x)

    one_by_one = torch.stack([gradients(x, by_torch) for x in xs])
    torch.testing.assert_close(vmap(lambda x: gradients(x, by_kernel))(xs), one_by_one)
    last = vmap(lambda x: gradients(x, by_kernel), in_dims=-1, out_dims=1)(xs.movedim(0, -1))
    torch.testing.assert_close(last, one_by_one.movedim(0, 1))


@pytest.mark.usefixtures("forced")
def test_an_ensemble_trains_side_by_side():
    models = [BatchNorm2d(3, activation="relu").double() for _ in range(4)]
    for model in models:
        nn.init.normal_(model.weight)
    parameters, buffers = stack_module_state(models)
    x = draw()[0].detach()
    skeleton = BatchNorm2d(3, activation="relu")
    ys = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(ys, torch.stack([model(x) for model in models]))
    for name, stacked in buffers.items():
        torch.testing.assert_close(stacked, torch.stack([m.get_buffer(name) for m in models]))


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_counts_a_mini_batch_once(use_reentrant):
    layer, same = BatchNorm2d(3, activation="relu"), BatchNorm2d(3, activation="relu")
    x = draw(dtype=torch.float32)[0]
    (ours,) = torch.autograd.grad(same(x, x).square().sum(), x)
    checkpoint(layer, x, x, use_reentrant=use_reentrant).square().sum().backward()
    torch.testing.assert_close(x.grad, ours)
    for name, value in same.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@pytest.mark.usefixtures("forced")
def test_autocast_keeps_the_dtype_of_the_input_and_float32_statistics():
    layer = BatchNorm2d(3, activation="relu")
    x = draw(dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.bfloat16())
    y.sum().backward()
    assert [y.dtype, layer.running_mean.dtype, layer.weight.grad.dtype] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]
    torch.testing.assert_close(y.float(), layer(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("forced")
def test_inference_mode_works():
    layer = BatchNorm2d(3, activation="relu")
    x = draw(dtype=torch.float32)[0].detach()
    expected = layer.eval()(x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
        layer.train()(x)
    assert layer.num_batches_tracked == 1


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x.repeat(1, 2, 1, 1)[:, ::2],
        lambda x: x[:1].expand(4, -1, -1, -1),
    ],
    ids=["channels last", "transposed", "every second channel", "expanded"],
)
def test_memory_in_any_order_gives_the_same(arrange):
    x = arrange(draw(dtype=torch.float32)[0].detach()).requires_grad_()
    y, expected = (
        compute(x, (), {}, training=True, activation="relu") for compute in (by_kernel, by_torch)
    )
    torch.testing.assert_close(y, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), x)[0] for out in (y, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("forced")
def test_an_empty_batch_is_as_in_torch():
    layer, x = BatchNorm2d(3, activation="relu"), torch.empty(0, 3, 4, 4, requires_grad=True)
    for training in (True, False):
        y = layer.train(training)(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == x.shape
    assert torch.equal(layer.running_mean, torch.zeros(3))  # which torch would make NaN


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": torch.ones(4)}, r"`weight` of shape \(4,\) on cpu does not fit `input`"),
        ({"bias": torch.ones(3, 1)}, r"`bias` of shape \(3, 1\) on cpu does not fit"),
        ({"running_mean": torch.ones(2)}, r"`running_mean` of shape \(2,\) on cpu does not fit"),
        ({"weight": torch.ones(3, device="meta")}, r"`weight` of shape \(3,\) on meta does not f"),
    ],
    ids=["weight", "bias", "running mean", "device"],
)
def test_what_does_not_fit_is_refused_before_memory_is_read(given, message):
    arguments = {"running_mean": None, "running_var": None, **given}
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.randn(4, 3, 2, 2), training=True, **arguments)


@pytest.mark.usefixtures("forced")
def test_inference_without_statistics_says_what_to_pass():
    with pytest.raises(ValueError, match="`running_mean` and `running_var` are needed to normali"):
        batch_norm(torch.randn(4, 3), None, None)


@pytest.mark.usefixtures("forced")
def test_of_a_residual_before_relu_only_the_output_is_kept():
    layer = BatchNorm2d(3, activation="relu")
    x, residual = draw(dtype=torch.float32, seed=1)[0], draw(dtype=torch.float32, seed=2)[0]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x, residual)
    large = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert large == {x.data_ptr(), y.data_ptr()}


@pytest.mark.usefixtures("forced")
def test_the_graph_is_freed_with_its_last_reference():
    x = draw()[0]
    y = batch_norm(x * 1, None, None, training=True, activation="relu")
    seen = [id(y.grad_fn)]
    del y
    assert seen[0] not in {id(o) for o in gc.get_objects()}


@pytest.mark.usefixtures("own_choice")
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_results_are_equal_to_the_bit_from_run_to_run(last):
    x = torch.randn(16, 64, 32, 32)  # large enough for the kernels, in several tasks
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    assert choice.choose_kernel(x).kernel == "core"
    layer, results = BatchNorm2d(64, activation="silu"), []
    torch.use_deterministic_algorithms(mode=True)
    try:
        for _ in range(5):
            y = layer(x, x)
            results.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
    finally:
        torch.use_deterministic_algorithms(mode=False)
    for tensors in zip(*results, strict=True):
        assert all(torch.equal(tensors[0], other) for other in tensors[1:])


def test_workers_of_a_data_loader_use_the_kernels_after_their_parent_did():
    layer = BatchNorm2d(64, activation="relu").eval()
    x = torch.randn(16, 64, 32, 32)

    class Normalised(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            with torch.no_grad():
                return layer(x + index).sum()

    with torch.no_grad():
        expected = [layer(x + index).sum() for index in range(4)]
    loader = torch.utils.data.DataLoader(Normalised(), batch_size=1, num_workers=2)
    torch.testing.assert_close(torch.cat(list(loader)), torch.stack(expected))
