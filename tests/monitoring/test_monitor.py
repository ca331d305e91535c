import copy
import gc
import io
import json
import math
import pickle
from importlib import import_module
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
import torch._dynamo.eval_frame
from torch import nn
from torch.utils.checkpoint import checkpoint

from bnkit.layers import BatchNorm1d
from bnkit.monitoring import Monitor, NonFinite, recorder
from bnkit.monitoring.recorder import Events
from counting import Waits
from interruptions import at_every_line


def network(norm=nn.BatchNorm1d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), norm(6), nn.ReLU(inplace=True), nn.Linear(6, 5), norm(5), nn.ReLU()
    )


def batches(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 4, generator=generator) for _ in range(steps)]


def train(model, steps, *, forward=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x in batches(steps):
        optimizer.zero_grad()
        (forward or model)(x).square().sum().backward()
        optimizer.step()
    return model


def hooks(model):
    return [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))


# What is recorded


def test_every_so_many_steps_each_layer_is_recorded():
    model = network()
    with Monitor(model, every=3) as monitor:
        train(model, 8)
    assert [(r.step, r.layer) for r in monitor.records] == [
        (step, layer) for step in (0, 3, 6) for layer in ("1", "4")
    ]
    assert monitor.steps == 8


def test_a_record_has_what_numpy_and_autograd_say():
    model = network().double()
    x = batches(1)[0].double()
    reference = copy.deepcopy(model)
    inner = reference[0](x)
    out = reference[1](inner)
    out.retain_grad()
    reference[2:](out.clone()).square().sum().backward()
    with Monitor(model, every=1) as monitor:
        model(x).square().sum().backward()
    record = monitor.records[0]
    for seen, values in ((record.input, inner), (record.output, out)):
        percentiles = np.percentile(values.detach(), [15, 50, 85], axis=0, method="nearest")
        typical = tuple(np.median(percentiles, axis=1))
        assert seen == pytest.approx(typical, rel=1e-5)
    assert record.never_positive == 0
    assert record.switched_off == 0
    gradients = {
        "weight_gradient": reference[1].weight.grad,
        "bias_gradient": reference[1].bias.grad,
        "output_gradient": out.grad,
    }
    for name, gradient in gradients.items():
        assert getattr(record, name) == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert math.isnan(record.input_drift)


def test_drift_is_measured_from_the_record_before():
    model = nn.Sequential(nn.BatchNorm1d(3))
    x = torch.randn(500, 3)
    with Monitor(model, every=2) as monitor:
        for shift in (0.0, 5.0, 2.0):
            model(x + shift)
    moved = monitor.records[-1]
    deviation = (monitor.records[0].input[2] - monitor.records[0].input[0]) / 2.0729
    assert moved.step == 2
    assert moved.input_drift == pytest.approx(2 / deviation, rel=0.1)
    assert moved.output_drift < 1e-4


def test_training_is_the_same_to_the_bit():
    plain, watched = train(network(), 7), network()
    with Monitor(watched, every=2):
        train(watched, 7)
    for ours, theirs in zip(
        watched.state_dict().values(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_lag_is_of_the_statistics_before_the_mini_batch():
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0))
    x = torch.tensor([[3.0], [5.0]])
    with Monitor(model, every=1) as monitor:
        model(x)
    assert monitor.records[0].lag == pytest.approx(4.0, rel=1e-4)


# What counts as a step


def test_forwards_in_eval_mode_and_of_parts_are_not_counted():
    model = network()
    with Monitor(model, every=1) as monitor:
        model.eval()(batches(1)[0])
        model.train()[:2](batches(1)[0])
    assert monitor.steps == 0
    assert monitor.records == ()


def test_of_a_layer_called_twice_the_first_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(input=x) + self.norm(input=x + 10)

    model, x = Twice(), torch.randn(32, 2)
    with Monitor(model, every=1) as monitor:
        model(x).sum().backward()
    (record,) = monitor.records
    assert abs(record.input[1]) < 1
    assert not math.isnan(record.weight_gradient)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_one_step(reentrant):
    def forward(x):
        return checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)

    plain, model = train(network(), 3), network()
    with Monitor(model, every=1) as monitor:
        train(model, 3, forward=forward)
    assert monitor.steps == 3
    assert len(monitor.records) == 6
    assert not any(math.isnan(record.weight_gradient) for record in monitor.records)
    if not reentrant:  # by which each forward runs, in the end, as without it
        torch.testing.assert_close(model[0].weight, plain[0].weight)


def test_two_forwards_before_one_backward_have_their_gradients():
    model = network()
    with Monitor(model, every=2) as monitor:
        first, second = (model(x) for x in batches(2))
        (first.sum() + second.sum()).backward()
    assert not any(math.isnan(record.output_gradient) for record in monitor.records)


def test_without_a_backward_gradients_are_unknown():
    model = network()
    with Monitor(model, every=1) as monitor, torch.no_grad():
        model(batches(1)[0])
        model(batches(1)[0])
    assert all(math.isnan(record.output_gradient) for record in monitor.records)


def test_frozen_parameters_have_no_gradient():
    model = network()
    model[1].requires_grad_(False)
    with Monitor(model, every=1) as monitor:
        train(model, 1)
    assert math.isnan(monitor.records[0].weight_gradient)
    assert monitor.records[0].output_gradient > 0


# What is not finite


def test_a_nan_between_two_records_is_told_of():
    for norm, batches_kept_out, channels in ((nn.BatchNorm1d, 0, 6), (BatchNorm1d, 2, 0)):
        model = network(norm)
        with Monitor(model, every=5) as monitor:
            for step in range(11):
                model(torch.full((8, 4), math.nan if step in (6, 7) else 1.0) * torch.randn(8, 4))
        assert monitor.non_finite[0] == NonFinite("1", 6, 10, batches_kept_out, channels)
        assert [event.layer for event in monitor.non_finite] == ["1", "4"]


def test_a_nan_after_the_last_record_is_told_of_at_close():
    model = network()
    monitor = Monitor(model, every=100)
    train(model, 3)
    model(torch.full((8, 4), math.inf))
    assert monitor.non_finite == ()
    monitor.close()
    assert str(monitor.non_finite[0]) == (
        "NaN or infinity reached layer '1' in steps 1–3, 6 channels not finite."
    )


def test_a_nan_in_a_recorded_step_reaches_layers_without_statistics_too():
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    with Monitor(model, every=1) as monitor:
        model(torch.tensor([[1.0, math.nan], [2.0, 3.0]]))
    assert monitor.non_finite == (NonFinite("0", 0, 0, 0, 1),)


# What it leaves behind


def test_close_takes_all_hooks_away_also_after_an_error():
    model = network()
    before = hooks(model)
    monitor = Monitor(model, every=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(8, 3))
    model(batches(1)[0])  # gradients are awaited
    monitor.close()
    assert hooks(model) == before
    assert not any(p._backward_hooks for p in model.parameters())
    assert monitor.steps == 2
    monitor.close()  # a second time does nothing
    assert [record.layer for record in monitor.records] == ["1", "4"]


def test_ctrl_c_leaves_nothing_behind():
    def watch():
        models.append(network())
        monitors.append(Monitor(models[-1], every=1))
        with monitors[-1]:
            models[-1](batches(1)[0])  # gradients are awaited

    models, monitors, places = [], [], set()
    for function, _ in at_every_line(("monitoring/monitor.py", "bnkit/observation.py"), watch):
        if function in ("__enter__", "__exit__", "close"):  # outside what is safe
            monitors[-1].close()
        left = [hook for of_module in hooks(models[-1]) for hook in of_module]
        left += [hook for p in models[-1].parameters() for hook in p._backward_hooks or ()]
        assert left == [], function
        assert torch._dynamo.eval_frame._stance.stance == "default", function
        places.add(function)
    assert {"_let_go", "_remove", "close", "_hooked", "running_eagerly", "enter"} <= places


def test_between_records_layers_have_no_hooks():
    model = network()
    with Monitor(model, every=10):
        train(model, 3)
        assert [len(of_module) for of_module in hooks(model)] == [1, *[0] * 6]
        assert not any(p._backward_hooks for p in model.parameters())


def test_copies_and_pickles_know_nothing_of_the_monitor():
    model = network()
    with Monitor(model, every=1) as monitor:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        copies.append(torch.load(stream, weights_only=False))
        for other in copies:
            train(other, 2)
        assert monitor.steps == 0
        train(model, 1)
        copies.append(copy.deepcopy(model))  # while gradients are known and not yet written
    assert monitor.steps == 1


# What it keeps


def kept_by(monitor, model):
    """Return how many tensors hang on the monitor and not on the model."""
    seen = {id(thing) for thing in (model, *model.modules(), *tensors_of(model))}
    queue, found = [monitor], 0
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType):
            continue
        seen.add(id(thing))
        found += isinstance(thing, torch.Tensor)
        queue += gc.get_referents(thing)
    return found


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("writer", [None, Writer()], ids=["without a writer", "with a writer"])
def test_memory_does_not_grow_with_the_steps(writer):
    model, kept = network(), []
    monitor = Monitor(model, every=1, writer=writer)
    for _ in range(3):
        train(model, 5)
        kept.append(kept_by(monitor, model))
    assert kept[0] == kept[1] == kept[2]
    monitor.close()
    assert kept_by(monitor, model) == 0


def test_the_last_records_are_kept_in_whole_steps(monkeypatch):
    monkeypatch.setattr(recorder, "MOST_RECORDS", 7)
    model, writer = network(), Writer()
    with Monitor(model, every=1, writer=writer) as monitor:
        train(model, 9)
    assert [(r.step, r.layer) for r in monitor.records] == [
        (step, layer) for step in (6, 7, 8) for layer in ("1", "4")
    ]
    assert {step for _, _, step in writer.scalars} == set(range(9))


def test_the_first_events_are_kept(monkeypatch):
    monkeypatch.setattr(recorder, "MOST_EVENTS", 3)
    model, writer = network(BatchNorm1d), Writer()
    with Monitor(model, every=1, writer=writer) as monitor:
        for _ in range(4):
            model(torch.full((8, 4), math.nan))
    assert [(event.last, event.layer) for event in monitor.non_finite] == [
        (0, "1"),
        (0, "4"),
        (1, "1"),
    ]
    told = [step for tag, _, step in writer.scalars if tag == "non_finite_batches/4"]
    assert told == [0, 1, 2, 3]


def test_nothing_waits_for_the_numbers_of_single_layers():
    layers = {str(place): nn.BatchNorm1d(2) for place in range(5)}
    events = Events(layers)
    layers["3"].running_var.fill_(math.nan)
    with Waits() as seen:
        events.look(0, {path: torch.ones(2) for path in layers})
        assert events.settle() == [NonFinite("3", 0, 0, 0, 2)]
    assert seen.count == 0


# Where it goes


def test_scalars_are_written_once_and_none_that_is_unknown():
    model, writer = network(), Writer()
    monitor = Monitor(model, every=2, writer=writer)
    train(model, 4)
    written = len(writer.scalars)
    assert {step for _, _, step in writer.scalars} == {0, 2}
    monitor.close()
    assert len(writer.scalars) == written  # step 3 found step 2 complete
    assert len({(tag, step) for tag, _, step in writer.scalars}) == written
    assert ("lag/4", monitor.records[-1].lag, 2) in writer.scalars
    assert "input_drift/1" not in {tag for tag, _, step in writer.scalars if step == 0}
    assert not any(math.isnan(value) for _, value, _ in writer.scalars)


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    files = import_module("tensorboard.backend.event_processing.event_accumulator")
    model, board = network(BatchNorm1d), import_module("torch.utils.tensorboard")
    with board.SummaryWriter(tmp_path) as writer, Monitor(model, every=2, writer=writer) as monitor:
        train(model, 3)
        model(torch.full((8, 4), math.nan))
    events = files.EventAccumulator(str(tmp_path)).Reload()
    (first, second) = events.Scalars("output_50/1")
    assert (first.step, second.step) == (0, 2)
    assert second.value == pytest.approx(monitor.records[2].output[1])
    assert [e.value for e in events.Scalars("non_finite_batches/1")] == [1]


def test_the_table_shows_the_last_step_and_json_everything():
    model = network()
    monitor = Monitor(model, every=2)
    assert str(monitor) == "Nothing recorded yet: 2 batch norms, 0 steps."
    train(model, 3)
    monitor.close()
    lines = str(monitor).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["1", "4"]
    assert lines[-1] == "Step 2, the last one recorded of 3: every 2 steps."
    data = json.loads(json.dumps(monitor.to_json(), allow_nan=False))
    assert (data["every"], data["steps"]) == (2, 3)
    assert data["records"][0]["input_drift"] is None
    assert data["records"][3]["output"] == list(monitor.records[3].output)


def test_layers_that_never_run_are_named():
    class Unused(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    model = Unused(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    with Monitor(model, every=1) as monitor:
        model(batches(1)[0])
    assert "Never called: '2'." in str(monitor)


# What is wrapped, compiled, transformed


def test_wrappers_are_looked_through(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        with Monitor(model, every=1) as monitor:
            train(model, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert [record.layer for record in monitor.records] == ["1", "4", "1", "4"]
    assert not math.isnan(monitor.records[0].output_gradient)


def test_a_compiled_model_runs_as_written_in_recorded_steps_only():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    model = torch.compile(network(), backend=backend)
    with Monitor(model, every=3) as monitor:
        train(model, 5)
    assert [(r.step, r.layer) for r in monitor.records] == [(0, "1"), (0, "4"), (3, "1"), (3, "4")]
    assert len(graphs) == 1  # neither broken nor compiled anew


def test_a_model_compiled_around_the_monitor_is_refused():
    model = network()
    compiled = torch.compile(model, backend="eager")
    with (
        Monitor(model, every=1),
        pytest.raises(RuntimeError, match=r"give what torch\.compile\(model\) returns"),
    ):
        compiled(batches(1)[0])
    torch.compiler.reset()  # which keeps in mind what it could not compile


def test_transformations_of_torch_func_are_refused():
    model = network()
    parameters = dict(model.named_parameters())

    def loss(values):
        return torch.func.functional_call(model, values, (batches(1)[0],)).sum()

    with (
        Monitor(model, every=1),
        pytest.raises(RuntimeError, match=r"inside a transformation of torch\.func"),
    ):
        torch.func.grad(loss)(parameters)


# Errors


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "100"])
def test_every_is_a_whole_number(every):
    with pytest.raises(ValueError, match=r"`every` is .*: pass an integer ≥ 1"):
        Monitor(network(), every=every)


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(
        ValueError, match=r"Sequential has no batch norm to look at: add them first"
    ):
        Monitor(nn.Sequential(nn.Linear(2, 2)))


def test_what_is_no_module_or_no_writer_is_refused():
    with pytest.raises(TypeError, match=r"`model` is a list: pass the torch\.nn\.Module"):
        Monitor([])
    with pytest.raises(TypeError, match=r"`writer` is a str, which has no add_scalar"):
        Monitor(network(), writer="runs")
