import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit import ExampleError, SurgeryError, add
from bnkit.surgery import plan_addition
from zoo.catalogue import conv, dense, images, vectors
from zoo.checks import fingerprint, random_state

PLACEMENTS = ("before_activation", "after_activation")

# Twins written by hand, line by line.


class PlainBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.up = conv(), conv(), conv(), nn.ConvTranspose2d(4, 5, 2, 2)
        self.fc1, self.fc2 = dense(5, 6), dense(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.max_pool2d(self.up(x), 2).tanh().mean((2, 3))
        return self.fc2(torch.sigmoid(self.fc1(x)))


class BlockByHand(PlainBlock):
    def __init__(self):
        super().__init__()
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(4) for _ in range(3))
        self.bn4, self.bn5 = nn.BatchNorm2d(5), nn.BatchNorm1d(6)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(self.bn3(self.b(F.relu(self.bn2(self.a(x))))) + x)
        x = F.max_pool2d(self.bn4(self.up(x)), 2).tanh().mean((2, 3))
        return self.fc2(torch.sigmoid(self.bn5(self.fc1(x))))


def test_training_goes_as_with_the_twin_written_by_hand():
    torch.manual_seed(0)
    plain = PlainBlock().double()
    twin = add(plain, images().double(), momentum=0.3, eps=1e-4)
    by_hand = BlockByHand().double()
    by_hand.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for layer in (by_hand.stem, by_hand.a, by_hand.b, by_hand.up, by_hand.fc1):
            layer.bias.zero_()  # redundant: the twin has none
    for norm in (by_hand.bn1, by_hand.bn2, by_hand.bn3, by_hand.bn4, by_hand.bn5):
        norm.momentum, norm.eps = 0.3, 1e-4
    losses = [trained(net) for net in (twin, by_hand)]
    torch.testing.assert_close(*losses, rtol=1e-8, atol=0)
    assert losses[0][-1] < losses[0][0]
    outputs = [net.eval()(images().double()) for net in (twin, by_hand)]
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


def trained(net):
    """Return the losses of some steps of gradient descent on always other mini-batches."""
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), []
    for step in range(8):
        x = images().double().roll(step, 0) + 0.1 * step
        loss = F.cross_entropy(net(x), torch.arange(4) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


# Options


def small():
    return nn.Sequential(dense(4, 5), nn.ReLU(), dense(5, 5), nn.ReLU(), dense(5, 2))


def test_momentum_and_eps_are_those_of_the_batch_norms():
    twin = add(small(), vectors(), momentum=None, eps=0.25)
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [(m.momentum, m.eps) for m in norms] == [(None, 0.25)] * 2


def test_where_gets_paths_and_layers_of_the_model_itself():
    plain, seen = small(), []

    def where(path, layer):
        seen.append(path)
        assert layer is plain.get_submodule(path)
        return layer is plain[2]

    plan = plan_addition(plain, vectors(), where=where)
    assert seen == ["0", "2", "4"]
    assert [edit.layer for edit in plan.edits] == ["2"]
    assert [(left.layer, left.why) for left in plan.left_alone] == [
        ("0", "`where` did not choose it"),
        ("4", "`where` did not choose it"),
    ]


def test_an_error_in_where_is_handed_on():
    def where(_path, _layer):
        raise KeyError("mine")

    plain = small()
    before, state = fingerprint(plain), random_state()
    with pytest.raises(KeyError, match="mine"):
        add(plain, vectors(), where=where)
    assert fingerprint(plain) == before
    assert random_state() == state


def test_where_that_chooses_nothing_is_told_so():
    message = (
        r"nothing that `where` chose can be normalised\. "
        r"0 \(Linear\): `where` did not choose it; 2 \(Linear\): `where` did not choose it; "
        r"4 \(Linear\): `where` did not choose it$"
    )
    with pytest.raises(SurgeryError, match=message):
        add(small(), vectors(), where=lambda *_: False)


def test_an_unknown_placement_is_refused():
    message = r"`placement` is 'before': choose from \('before_activation', 'after_activation', 'ev"
    with pytest.raises(ValueError, match=message):
        add(small(), vectors(), placement="before")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_models_of_every_dtype_train_with_statistics_of_float32_at_least(dtype, placement):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), dense(144, 5), nn.Tanh(), dense(5, 2))
    twin = add(model.to(dtype), images().to(dtype), placement=placement)
    norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    expected = torch.promote_types(dtype, torch.float32)
    assert (
        [n.running_mean.dtype for n in norms] == [n.weight.dtype for n in norms] == 2 * [expected]
    )
    y = twin(images().to(dtype))
    y.square().sum().backward()
    assert y.dtype == dtype
    assert all(p.grad.isfinite().all() for p in twin.parameters())


def test_a_twin_may_be_made_where_gradients_are_off():
    plain, x = small(), vectors()
    with torch.inference_mode():
        twin = add(plain, x + 0)
    twin(x).sum().backward()
    assert not any(p.is_inference() for p in twin.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_batch_norms_are_made_on_the_device_of_their_layer(placement):
    model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), dense(144, 5), nn.Tanh(), dense(5, 2))
    twin = add(model.cuda(), images().cuda(), placement=placement)
    assert {t.device.type for t in twin.state_dict().values()} == {"cuda"}
    assert twin(images().cuda()).isfinite().all()


# Errors


def test_a_model_without_layers_that_fit_says_what_it_holds():
    message = r"normalised: it has no dense or conv layer, only Embedding, Softmax$"
    model = nn.Sequential(nn.Embedding(3, 2), nn.Softmax(-1))
    with pytest.raises(SurgeryError, match=message):
        add(model, torch.zeros(2, 2, dtype=torch.int64))


def test_a_single_layer_is_an_output_layer():
    message = r"normalised\. the model \(Linear\): output layer: its result leaves the model$"
    with pytest.raises(SurgeryError, match=message):
        add(dense(), vectors())


def test_a_long_list_of_reasons_is_cut():
    model = nn.Sequential(*(dense() for _ in range(30)))
    with pytest.raises(SurgeryError, match=r"; and 22 more, which plan_addition lists$"):
        add(model, vectors())


def test_images_without_a_batch_axis_are_refused_by_the_name_of_the_layer():
    message = r"0 \(Conv2d\): its output of shape \(4, 6, 6\) is not a mini-batch: add a batch "
    model = nn.Sequential(conv(), nn.ReLU(), conv())
    with pytest.raises(SurgeryError, match=message):
        add(model, images()[0])
    twin = add(model, images())
    message = r"layer '0' normalises over the mini-batch and needs a batch axis: .*\(4, 6, 6\)"
    with pytest.raises(ValueError, match=message):
        twin(images()[0])


class BiasReader(nn.Module):
    """Reads a bias for its device only, which the recorder cannot see."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = dense(), dense()

    def forward(self, x):
        return self.head(F.relu(self.fc(x.to(self.fc.bias.device))))


def test_a_model_that_cannot_do_without_a_redundant_bias_is_told_so():
    message = (
        r"with batch norms, and without the biases that they make redundant, the model fails on "
        r"`example` of shape \(6, 4\) in its own forward: AttributeError: .*; leave layers out by"
    )
    plain = BiasReader()
    before, state = fingerprint(plain), random_state()
    with pytest.raises(SurgeryError, match=message):
        add(plain, vectors())
    assert fingerprint(plain) == before
    assert random_state() == state


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(2, 3), r"`example` of shape \(2, 3\) in layer '0' \(Linear\): RuntimeError: "),
        ([torch.zeros(2, 4)], r"`example` is a list: pass a tensor, a tuple of positional"),
    ],
    ids=["of the wrong shape", "of the wrong kind"],
)
def test_wrong_examples_leave_the_model_untouched(example, message):
    plain = small()
    before, state = fingerprint(plain), random_state()
    with pytest.raises((ExampleError, TypeError), match=message):
        add(plain, example)
    assert fingerprint(plain) == before
    assert random_state() == state


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"eps": float("nan")}, "`eps` is nan: pass a finite number of at least 0"),
        ({"eps": float("inf")}, "`eps` is inf: pass a finite number of at least 0"),
        ({"eps": -1e-5}, "`eps` is -1e-05: pass a finite number of at least 0"),
        ({"momentum": 5.0}, "`momentum` is 5.0: pass a number from 0 to 1, or None"),
        ({"momentum": -0.1}, "`momentum` is -0.1: pass a number from 0 to 1, or None"),
        ({"momentum": float("nan")}, "`momentum` is nan: pass a number from 0 to 1, or None"),
    ],
)
def test_numbers_with_which_no_batch_norm_can_compute_are_refused(numbers, message):
    model = nn.Sequential(dense(), nn.ReLU(), dense())
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        add(model, vectors(), **numbers)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("recurrent", "hint"),
    [
        (nn.LSTM, "recurrent: a bnkit.layers.BatchNormLSTM in its place normalises each step"),
        (nn.LSTMCell, "recurrent: a bnkit.layers.BatchNormLSTMCell in its place normalises eac"),
        (nn.GRU, "recurrent: of such layers bnkit.layers has LSTMs only"),
    ],
)
def test_a_recurrent_layer_says_which_of_ours_fits(recurrent, hint):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.out = recurrent(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.recurrent(x)[0])

    plan = plan_addition(Tagger(), torch.randn(3, 4))
    assert plan.left_alone[0].layer == "recurrent"
    assert plan.left_alone[0].why.startswith(hint)
    with pytest.raises(SurgeryError, match=re.escape(hint)):
        add(Tagger(), torch.randn(3, 4))
    chosen = plan_addition(Tagger(), torch.randn(3, 4), where=lambda path, _: path == "out")
    assert [left.layer for left in chosen.left_alone] == ["out"]
