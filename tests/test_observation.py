import copy
import pickle
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers import BatchNorm1d, FrozenBatchNorm1d
from bnkit.moments import Moments
from bnkit.observation import (
    counting_training_steps,
    evaluating,
    normalising_by_batch_statistics,
    observing_inputs,
    on_the_side,
    preserved_random_state,
    running_eagerly,
    seeing_gradients,
    seeing_inputs,
    watching,
    watching_layers,
)


class BlockError(Exception):
    """Raised inside blocks, and nowhere else."""


class Unbranched(nn.Module):
    """Calls one layer twice, by keyword, and another not at all."""

    def __init__(self):
        super().__init__()
        self.first = self.again = nn.Linear(2, 2)
        self.norm = BatchNorm1d(2)
        self.unused = nn.BatchNorm1d(2)

    def forward(self, x, *, shift=0.0):
        return self.norm(input=self.again(self.first(x)) + shift)


def network():
    """Return a network in which some layers are in eval mode already."""
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Sequential(BatchNorm1d(3), nn.ReLU())
    )
    model[1].eval()
    model[3][1].eval()
    return model


def modes(model):
    return {path: module.training for path, module in model.named_modules()}


def hooks(model):
    return [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]


def identities(model):
    """Return which buffers the model holds, in which order and in which memory."""
    return {
        path: [(name, id(value), value.data_ptr()) for name, value in module._buffers.items()]
        for path, module in model.named_modules()
    }


def ignore(*_):
    pass


BORROWING = {
    "evaluating": evaluating,
    "on the side": on_the_side,
    "normalising by batch statistics": normalising_by_batch_statistics,
    "watching": lambda model: watching(model, before=ignore, after=ignore),
    "observing inputs": lambda model: observing_inputs(model, {"": model}),
    "seeing inputs": lambda model: seeing_inputs(model, {"": model}, ignore),
}


@pytest.mark.parametrize("borrow", BORROWING.values(), ids=BORROWING)
def test_everything_is_given_back_also_when_the_block_fails(borrow):
    model = network()
    before = modes(model), identities(model), hooks(model)

    def fail():
        with borrow(model):
            model(torch.randn(4, 2))
            raise BlockError

    with pytest.raises(BlockError):
        fail()
    assert (modes(model), identities(model), hooks(model)) == before
    with borrow(model):
        pass
    assert (modes(model), identities(model), hooks(model)) == before


@pytest.mark.parametrize("borrow", BORROWING.values(), ids=BORROWING)
def test_blocks_may_be_nested(borrow):
    model = network()
    before = modes(model), identities(model), hooks(model)
    with borrow(model):
        inside = modes(model), hooks(model)
        with borrow(model):
            pass
        assert (modes(model), hooks(model)) == inside
    assert (modes(model), identities(model), hooks(model)) == before


# on_the_side


def test_a_run_on_the_side_leaves_no_trace():
    model = network().train()
    random_numbers = torch.get_rng_state()
    with torch.inference_mode(), on_the_side(model):
        output = model(torch.randn(4, 2))
        assert not any(modes(model).values())
        assert not output.requires_grad
        assert not output.is_inference()
    assert all(modes(model).values())
    assert torch.equal(torch.get_rng_state(), random_numbers)


def test_a_run_on_the_side_may_keep_its_mode():
    model = network()
    with on_the_side(model, mode=normalising_by_batch_statistics):
        assert model[1].running_mean is None
    with on_the_side(model, mode=lambda _: nullcontext()):
        assert model.training


# evaluating


def test_evaluating_puts_all_in_eval_mode():
    model = network()
    with evaluating(model):
        assert not any(modes(model).values())


def test_evaluating_undoes_what_the_block_does_to_the_modes():
    model = network()
    before = modes(model)
    with evaluating(model):
        model.train()
    assert modes(model) == before


def test_evaluating_calls_no_train_method_that_does_more():
    class Merging(nn.Linear):
        def train(self, mode=True):  # noqa: ARG002  torch's signature
            raise BlockError

    model = nn.Sequential(Merging(1, 1))
    with evaluating(model):
        assert not model[0].training
    assert model[0].training


# normalising_by_batch_statistics


def test_batch_norms_normalise_by_the_mini_batch_and_nothing_is_updated():
    model, x = network(), torch.randn(8, 2) * 5 + 2
    model.train()(x)
    before, buffers = identities(model), {k: v.clone() for k, v in model.named_buffers()}
    with normalising_by_batch_statistics(model), torch.no_grad():
        seen = model(x)
    expected = nn.functional.batch_norm(model[0](x), None, None, training=True)
    expected = nn.functional.batch_norm(expected, None, None, training=True).relu()
    torch.testing.assert_close(seen, expected)
    assert identities(model) == before
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


def test_batch_norms_without_running_statistics_stay_without():
    layer = nn.BatchNorm1d(2, track_running_stats=False)
    with normalising_by_batch_statistics(layer):
        layer(torch.randn(4, 2))
    assert layer.running_mean is None


def test_a_batch_norm_frozen_by_its_flag_stays_so():
    layer = nn.BatchNorm1d(2)
    layer.track_running_stats = False
    with normalising_by_batch_statistics(layer):
        layer(torch.randn(4, 2))
    assert torch.equal(layer.running_mean, torch.zeros(2))


def test_lazy_batch_norms_that_have_seen_no_input_are_left_alone():
    layer = nn.LazyBatchNorm1d()
    with normalising_by_batch_statistics(layer):
        assert layer.running_mean is not None
    layer(torch.randn(4, 2))
    with normalising_by_batch_statistics(layer):
        assert layer.running_mean is None
    assert layer.running_mean.shape == (2,)


def test_instance_norms_keep_their_running_statistics():
    layer = nn.InstanceNorm1d(2, track_running_stats=True)
    with normalising_by_batch_statistics(layer):
        assert layer.running_mean is not None


# observing_inputs


def test_moments_of_inputs_are_pooled_over_calls_and_batches():
    model = Unbranched()
    x = torch.randn(7, 2)
    with observing_inputs(model, {"norm": model.norm, "first": model.first}) as seen:
        model(x[:4])
        model(x[4:], shift=1.0)
    between = model.first(x)
    into_linear = Moments.of(torch.cat([x, between]))
    into_norm = Moments.of(torch.cat([model.first(between[:4]), model.first(between[4:]) + 1.0]))
    for name, expected in {"first": into_linear, "norm": into_norm}.items():
        assert seen[name].count == expected.count
        torch.testing.assert_close(seen[name].mean, expected.mean)
        torch.testing.assert_close(seen[name].variance, expected.variance)


def test_a_layer_that_has_not_run_has_no_moments():
    model = Unbranched()
    with observing_inputs(model, {"unused": model.unused}) as seen:
        model(torch.randn(4, 2))
    assert seen == {}


def test_layers_of_another_model_are_refused():
    model, other = network(), network()
    message = r"layer '1' \(BatchNorm1d\) is not in the model.*take the layers from the model"
    with pytest.raises(ValueError, match=message), observing_inputs(model, {"1": other[1]}):
        pass


def test_inputs_that_are_no_tensors_are_refused():
    class Pick(nn.Module):
        def forward(self, x):
            return x[0]

    model = Pick()
    message = r"first argument of layer 'pick' \(Pick\) is a list: only inputs that are tensors"
    with observing_inputs(model, {"pick": model}), pytest.raises(TypeError, match=message):
        model([torch.ones(1)])


# watching


def journal():
    events = []

    def before(path, module, args, kwargs):
        events.append(("before", path, type(module).__name__, len(args), sorted(kwargs)))
        return "dropped"

    def after(path, module, args, kwargs, output):
        events.append(("after", path, type(module).__name__, len(args), sorted(kwargs)))
        events.append(output)
        return "dropped"

    return events, before, after


def test_every_call_is_seen_with_its_arguments_and_output():
    model, x = Unbranched(), torch.randn(4, 2)
    events, before, after = journal()
    with watching(model, before=before, after=after):
        y = model(x, shift=1.0)
    outputs = [event for event in events if isinstance(event, torch.Tensor)]
    assert [event for event in events if isinstance(event, tuple)] == [
        ("before", "", "Unbranched", 1, ["shift"]),
        ("before", "first", "Linear", 1, []),  # shared: its first path, both times
        ("after", "first", "Linear", 1, []),
        ("before", "first", "Linear", 1, []),
        ("after", "first", "Linear", 1, []),
        ("before", "norm", "BatchNorm1d", 0, ["input"]),
        ("after", "norm", "BatchNorm1d", 0, ["input"]),
        ("after", "", "Unbranched", 1, ["shift"]),
    ]
    assert outputs[-1] is y
    assert outputs[-2] is y
    assert torch.equal(outputs[0], model.first(x))


def test_what_watchers_return_changes_nothing():
    model, x = network().eval(), torch.randn(4, 2)
    _, before, after = journal()
    expected = model(x)
    with watching(model, before=before, after=after):
        assert torch.equal(model(x), expected)


def test_a_forward_that_raises_is_seen_to_end():
    class Failing(nn.Module):
        def forward(self, _):
            raise BlockError

    class Patient(nn.Module):
        def __init__(self):
            super().__init__()
            self.child = Failing()

        def forward(self, x):
            try:
                return self.child(x)
            except BlockError:
                return x

    model, ends = Patient(), []
    with watching(model, after=lambda path, *rest: ends.append((path, rest[-1]))):
        model("x")
    assert ends == [("child", None), ("", "x")]


def test_one_watcher_is_enough():
    model, starts = network(), []
    with watching(model, before=lambda path, *_: starts.append(path)):
        model(torch.randn(4, 2))
    assert starts == ["", "0", "1", "2", "3", "3.0", "3.1"]


def test_a_watcher_that_raises_stops_the_run_and_its_hooks_are_removed():
    def refuse(*_):
        raise BlockError

    model = network()
    with pytest.raises(BlockError), watching(model, before=refuse):
        model(torch.randn(4, 2))
    assert not any(hooks(model))


# preserved_random_state


def draw():
    numpy_draw = np.random.rand()  # noqa: NPY002  the global generator is what is preserved
    return torch.rand(1).item(), random.random(), numpy_draw


@pytest.mark.parametrize("error", [None, BlockError])
def test_random_generators_go_on_as_if_the_block_had_not_been(error):
    def block():
        with preserved_random_state():
            torch.manual_seed(1)
            random.seed(1)
            np.random.seed(1)  # noqa: NPY002
            draw()
            if error:
                raise error

    with preserved_random_state():
        expected = [draw(), draw()]
    drawn = [draw()]
    try:
        block()
    except BlockError:
        assert error is BlockError
    assert [*drawn, draw()] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_generators_of_cuda_go_on_too():
    torch.cuda.init()
    with preserved_random_state():
        expected = torch.rand(1, device="cuda")
    with preserved_random_state():
        torch.rand(5, device="cuda")
    assert torch.equal(torch.rand(1, device="cuda"), expected)


# seeing_inputs


def test_each_input_is_seen_before_the_layer_runs_with_what_is_written_into_it():
    model, x, seen = Unbranched().eval(), torch.randn(4, 2), []

    def see(name, layer, values):
        seen.append((name, values))
        layer.running_mean.fill_(len(seen))

    with seeing_inputs(model, {"norm": model.norm}, see):
        y = model(x)
    ((name, values),) = seen
    assert name == "norm"
    assert torch.equal(values, model.first(model.first(x)))
    torch.testing.assert_close(y, (values - 1) / (1 + model.norm.eps) ** 0.5)


def test_layers_of_another_model_cannot_be_seen():
    model, other = network(), network()
    message = r"layer '1' \(BatchNorm1d\) is not in the model.*take the layers from the model"
    with pytest.raises(ValueError, match=message), seeing_inputs(model, {"1": other[1]}, ignore):
        pass


def test_a_frozen_batch_norm_keeps_its_statistics_among_batch_statistics():
    frozen = FrozenBatchNorm1d(1)
    model = nn.Sequential(frozen, nn.BatchNorm1d(1))
    x = torch.tensor([[1.0], [3.0]])
    with normalising_by_batch_statistics(model):
        torch.testing.assert_close(frozen(x), x, rtol=1e-5, atol=0)
        torch.testing.assert_close(model(x), torch.tensor([[-1.0], [1.0]]), rtol=1e-4, atol=0)


def test_layers_are_watched_and_their_copies_are_not():
    model, seen = network(), []
    before = hooks(model)
    with watching_layers({"1": model[1]}, before=lambda *c: seen.append(c[0]), after=print):
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        copied(torch.randn(4, 2))
        assert seen == []
        model(torch.randn(4, 2))
    assert seen == ["1"]
    assert hooks(model) == before


def test_gradients_are_seen_once_and_not_after_the_block():
    seen = {}
    x, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    with seeing_gradients({"x": x, "constant": constant}, seen.__setitem__):
        (3 * x * constant).sum().backward()
    (5 * x).sum().backward()
    assert list(seen) == ["x"]
    assert seen["x"].tolist() == [3.0, 3.0]
    assert x.grad.tolist() == [8.0, 8.0]  # what was seen changed nothing


def test_what_is_compiled_runs_as_written_inside_the_block():
    graphs, layer = [], nn.Linear(2, 2)
    compiled = torch.compile(layer, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    with running_eagerly():
        compiled(torch.ones(1, 2))
    assert graphs == []
    compiled(torch.ones(1, 2))
    assert len(graphs) == 1


def test_training_steps_are_begun_once_each_and_copies_count_nothing():
    model, begun = nn.Sequential(nn.Linear(2, 2)), []
    with counting_training_steps(model, lambda: begun.append(1)):
        x = torch.ones(1, 2, requires_grad=True)
        checkpoint(model, x, use_reentrant=False).sum().backward()  # it runs again in the backward
        model.eval()(x)
        copy.deepcopy(model.train())(x)
    model(x)
    assert begun == [1]
