import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.dataflow import ExampleError, trace
from zoo.catalogue import Net, dense, vectors


def net(forward, **parts):
    """Return a module with these layers and this forward, a function of (self, x)."""
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    kind = type("Model", (nn.Module,), {"forward": forward})
    model.__class__ = kind
    return model


def flow_of(forward, x=None, **parts):
    return trace(net(forward, **parts), vectors() if x is None else x)


def names(flow):
    return [call.name for call in flow.calls]


def path_between(flow, first, last):
    """Return the names of the calls from `first` to `last`, each the only one to follow."""
    (call,) = [c for c in flow.calls if c.name == first]
    path = [call.name]
    while call.name != last:
        (call,) = flow.following(call)
        path.append(call.name)
    return path


# Calls


def test_modules_are_called_by_their_path_and_functions_by_their_name():
    def forward(self, x):
        return F.gelu(self.fc(x).view(-1)).sum()

    flow = flow_of(forward, fc=dense())
    assert path_between(flow, "fc", "sum") == ["fc", "view", "gelu", "sum"]
    assert isinstance(flow.calls[0].module, nn.Linear)
    assert [flow.shapes[v] for call in flow.calls for v in call.outputs] == [
        (6, 4),
        (24,),
        (24,),
        (),
    ]
    assert flow.leaves(flow.calls[-1])


def test_what_happens_inside_of_a_layer_is_hidden():
    class Twice(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return torch.relu(self.inner(super().forward(x)))

    flow = flow_of(lambda self, x: self.layer(x), layer=Twice())
    assert names(flow) == ["layer"]


def test_functions_know_in_whose_forward_they_happen():
    class Block(Net):
        def parts(self):
            return {"fc": dense()}

        def forward(self, x):
            return self.fc(x).relu()

    flow = flow_of(lambda self, x: self.block(x).tanh(), block=Block())
    assert [(c.name, c.scope) for c in flow.calls] == [
        ("block.fc", "block"),
        ("relu", "block"),
        ("tanh", ""),
    ]


def test_arguments_and_results_show_values_numbers_and_names():
    def forward(self, x):
        output, _ = self.lstm(x, None)
        return torch.add(output * self.gain, x, alpha=2)

    model = net(forward, lstm=nn.LSTM(4, 4))
    model.gain = nn.Parameter(torch.ones(4))
    lstm, mul, add = trace(model, vectors()).calls
    x = lstm.arguments[0]
    assert lstm.arguments == (x, None)
    assert lstm.result == (lstm.outputs[0], lstm.outputs[1:])
    assert mul.arguments == (lstm.outputs[0], "gain")
    assert mul.parameters == ("gain",)
    assert mul.inputs == (lstm.outputs[0],)
    assert (add.arguments, add.keywords) == ((mul.result, x), {"alpha": 2})


def test_a_function_that_does_nothing_is_no_call():
    def forward(self, x):
        return self.fc(x).contiguous().requires_grad_().to(torch.float32).relu()

    assert names(flow_of(forward, fc=dense())) == ["fc", "relu"]


def test_only_the_first_of_two_tensors_gives_numbers_where_the_other_gives_its_kind():
    def forward(self, x):
        y = self.fc(x)
        z = torch.zeros_like(y) + y.new_ones(4)
        return z.type_as(y).view_as(y).to(y)

    flow = flow_of(forward, fc=dense())
    assert list(flow.following(flow.calls[0])) == []


def test_numbers_that_leave_torch_are_reads():
    def forward(self, x):
        y = self.fc(x)
        return y if y.sum() > 0 and y.max().item() else -y

    flow = flow_of(forward, fc=dense())
    assert {"__bool__", "item"} & set(names(flow))
    assert "fc" in names(flow)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpointed_parts_are_seen(use_reentrant):
    def forward(self, x):
        y = torch.utils.checkpoint.checkpoint(self.fc, x, use_reentrant=use_reentrant)
        return torch.utils.checkpoint.checkpoint(torch.relu, y, use_reentrant=use_reentrant)

    assert path_between(flow_of(forward, fc=dense()), "fc", "relu") == ["fc", "relu"]


class Same(torch.autograd.Function):
    """Returns its input, of which autograd makes another tensor."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004  torch's signature
        return x


def test_autograd_functions_are_seen_through():
    flow = flow_of(lambda self, x: Same.apply(self.fc(x)).relu(), fc=dense())
    assert path_between(flow, "fc", "relu") == ["fc", "view_as", "relu"]


def test_vmap_inside_a_model_is_no_obstacle():
    flow = flow_of(lambda self, x: torch.vmap(torch.relu)(self.fc(x)), fc=dense())
    assert names(flow) == ["fc", "relu"]


# Values


def test_an_operation_in_place_makes_a_new_value():
    def forward(self, x):
        y = self.fc(x)
        y.relu_()
        return self.head(y)

    flow = flow_of(forward, fc=dense(), head=dense())
    assert path_between(flow, "fc", "head") == ["fc", "relu_", "head"]


def test_a_module_in_place_makes_a_new_value():
    def forward(self, x):
        y = self.fc(x)
        self.act(y)
        return self.head(y)

    flow = flow_of(forward, fc=dense(), act=nn.ReLU(inplace=True), head=dense())
    assert path_between(flow, "fc", "head") == ["fc", "act", "head"]


def test_a_write_into_a_view_is_a_new_value_of_all_that_share_the_memory():
    def forward(self, x):
        y = self.fc(x)
        first, second = y[:, :2], y[:, 2:].data
        second.clamp_(min=0)
        return self.a(first), self.b(y)

    flow = flow_of(forward, fc=dense(), a=dense(2, 1), b=dense())
    (write,) = [c for c in flow.calls if c.name == "clamp_"]
    assert {c.name for c in flow.following(write)} == {"a", "b"}


def test_an_assignment_hands_on_what_is_assigned():
    def forward(self, x):
        y = torch.empty(6, 8)
        y[:, 4:] = self.fc(x)
        return y.relu()

    assert path_between(flow_of(forward, fc=dense()), "fc", "relu") == ["fc", "__setitem__", "relu"]


def test_writes_in_inference_mode_are_seen():
    def forward(self, x):
        with torch.inference_mode():
            return self.head(self.fc(x).relu_())

    flow = flow_of(forward, fc=dense(), head=dense())
    assert path_between(flow, "fc", "head") == ["fc", "relu_", "head"]


def test_a_buffer_is_a_value_once_the_model_has_written_into_it():
    def forward(self, x):
        y = x + self.memory
        self.memory.copy_(self.fc(y))
        return self.memory.relu()

    model = net(forward, fc=dense())
    model.register_buffer("memory", torch.zeros(6, 4))
    flow = trace(model, vectors())
    assert path_between(flow, "fc", "relu") == ["fc", "copy_", "relu"]
    assert flow.calls[0].parameters == ("memory",)


def test_what_the_model_drops_is_not_kept_alive_and_its_identity_may_be_used_again():
    seen = []

    def forward(_, x):
        for _ in range(20):
            x = x + 1  # its memory and its id are free at the next turn but one
            seen.append(id(x))
        return x

    calls = flow_of(forward).calls
    assert len(set(seen)) < 20
    assert [call.inputs for call in calls[1:]] == [call.outputs for call in calls[:-1]]


def test_a_dropped_view_of_what_is_written_into_is_no_value_any_more():
    def forward(_, x):
        y = x * 2
        y[0].mul_(1)  # the view lives only here
        y.view(-1)
        return y.add_(1)

    assert len(flow_of(forward).calls[-1].outputs) == 1


def test_the_dtypes_in_which_functions_and_layers_compute_are_seen():
    flow = flow_of(lambda self, x: self.fc(x).to(torch.float16).double(), fc=dense())
    assert flow.dtypes == {torch.float32, torch.float16, torch.float64}


def test_the_identity_of_a_replaced_buffer_is_not_used_again():
    def forward(self, x):
        for name in list(self._buffers):
            setattr(self, name, self.get_buffer(name) * 2)
        for _ in range(300):  # some of these would get the identity of a buffer that is gone
            x = x + 1
        return x

    model = net(forward)
    for number in range(50):
        model.register_buffer(f"count{number}", torch.zeros(()))
    flow = trace(model, vectors())
    assert {call.name for call in flow.calls if call.parameters} == {"mul"}


# Outputs


def outputs(flow):
    return {call.name for call in flow.calls if flow.leaves(call)}


OUTPUTS = {
    "numpy": lambda y: y.numpy(),
    "list": lambda y: y.tolist(),
    "array": np.asarray,
    "a function that knows it": lambda y: lambda: y,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("give", OUTPUTS.values(), ids=OUTPUTS)
def test_what_leaves_in_an_odd_way_is_an_output(give):
    assert outputs(flow_of(lambda self, x: give(self.fc(x).sigmoid()), fc=dense())) == {"sigmoid"}


def test_what_is_read_and_returned_is_an_output():
    def forward(self, x):
        y = self.fc(x)
        return {"raw": y, "scores": y.softmax(1)}

    assert outputs(flow_of(forward, fc=dense())) == {"fc", "softmax"}


def test_what_is_thrown_away_is_none():
    def forward(self, x):
        y = self.fc(x)
        y.mean()
        return self.head(y)

    assert outputs(flow_of(forward, fc=dense(), head=dense())) == {"head"}


# Failures


def test_a_layer_that_fails_and_is_caught_leaves_no_trace():
    def forward(self, x):
        try:
            x = self.wrong(x)
        except RuntimeError:
            x = self.right(x)
        return x.relu()

    flow = flow_of(forward, wrong=dense(5, 4), right=dense())
    assert path_between(flow, "right", "relu") == ["right", "relu"]
    assert "wrong" not in names(flow)


def message(forward, **parts):
    with pytest.raises(ExampleError) as caught:
        flow_of(forward, **parts)
    return str(caught.value)


def test_the_innermost_layer_that_failed_is_named():
    body = nn.Sequential(dense(), nn.Sequential(nn.ReLU(), dense(5, 2)))
    assert message(lambda self, x: self.body(x), body=body).startswith(
        "the model fails on `example` of shape (6, 4) in layer 'body.1.1' (Linear): RuntimeError: "
        "mat1 and mat2 shapes cannot be multiplied"
    )


def test_a_block_that_fails_between_its_layers_is_named():
    class Block(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.t()])

    text = message(lambda self, x: self.block(self.fc(x)), block=Block(), fc=dense())
    assert " in layer 'block' (Block): RuntimeError: Sizes of tensors must match" in text


def test_a_model_that_fails_between_its_layers_says_so():
    text = message(lambda self, x: self.fc(x) + self.fc(x).t(), fc=dense())
    assert " of shape (6, 4) in its own forward: RuntimeError: The size of tensor" in text


def test_the_layer_of_an_earlier_error_that_was_caught_is_not_named():
    def forward(self, x):
        try:
            self.wrong(x)
        except RuntimeError:
            x = self.right(x)
        return x + x.t()

    assert " in its own forward: " in message(forward, wrong=dense(5, 4), right=dense())


def test_an_error_that_is_raised_again_keeps_its_layer():
    def forward(self, x):
        try:
            return self.wrong(x)
        except RuntimeError:
            self.right(x)
            raise

    assert " in layer 'wrong' (Linear): " in message(forward, wrong=dense(5, 4), right=dense())


def test_a_hook_of_the_user_that_refuses_the_input_is_the_fault_of_its_layer():
    def refuse(_module, _inputs):
        raise ValueError("not this")

    fc = dense()
    fc.register_forward_pre_hook(refuse)
    body = nn.Sequential(nn.ReLU(), fc)
    text = message(lambda self, x: self.body(x), body=body)
    assert text.endswith(" in layer 'body.1' (Linear): ValueError: not this")


def test_a_refusing_hook_that_is_caught_does_not_hide_what_follows():
    def refuse(_module, _inputs):
        raise ValueError

    def forward(self, x):
        try:
            x = self.fc(x)
        except ValueError:
            x = self.head(x)
        return x.relu()

    fc = dense()
    fc.register_forward_pre_hook(refuse)
    assert names(flow_of(forward, fc=fc, head=dense())) == ["head", "relu"]
