import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnkit.experiments.tasks import CLASSIFICATION, LOSSES, judge_of, reader
from bnkit.experiments.training import OPTIMIZERS, Training, accuracy, train

CLASSES = 3


def examples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    inputs = torch.randn(count, 4, generator=generator) + F.one_hot(targets, 4)
    return inputs, targets


def cut(inputs, targets, size=6):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


BATCHES = cut(*examples(24))
# A mini-batch of 20 and one of 10, far from the training data: the statistics used show.
HELD_OUT = [(x + 2, y) for x, y in cut(*examples(30, seed=1), size=20)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)), nn.Linear(8, CLASSES)
    )


def state(model):
    return {name: array.clone() for name, array in model.state_dict().items()}


def assert_equal_states(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def share_right(model, mode):
    """The accuracy over all held-out examples, by hand."""
    model = copy.deepcopy(model).train(mode)
    right = [(model(x).argmax(1) == y).float() for x, y in HELD_OUT]
    return torch.cat(right).double().mean().item()


# The loop


def test_it_equals_a_loop_written_by_hand_bit_by_bit():
    ours, by_hand = net(), net()
    torch.manual_seed(1)
    run = train(ours, BATCHES, HELD_OUT, Training(0.5, steps=10, evaluate_every=4))

    torch.manual_seed(1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    losses, accuracies = [], []
    for step in range(10):
        x, y = BATCHES[step % 4]
        loss = F.cross_entropy(by_hand(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step + 1 in {4, 8, 10}:
            accuracies.append(share_right(by_hand, mode=False))

    assert_equal_states(ours.state_dict(), by_hand.state_dict())
    assert (run.outcome, run.reason, run.steps) == ("finished", "", 10)
    assert run.curve.steps == (4, 8, 10)  # the last step is evaluated too
    assert run.curve.metric == pytest.approx(accuracies, abs=1e-15)
    means = [sum(losses[:4]) / 4, sum(losses[4:8]) / 4, sum(losses[8:]) / 2]
    assert run.curve.loss == pytest.approx(means, rel=1e-6)
    assert run.curve.training_mode_metric == ()
    assert run.seconds > 0


def test_the_number_of_evaluations_changes_no_weight():
    models = [net(), net()]
    for model, every in zip(models, (1, 7), strict=True):
        torch.manual_seed(1)
        train(model, BATCHES, HELD_OUT, Training(0.5, steps=7, evaluate_every=every))
    assert_equal_states(*(model.state_dict() for model in models))


def test_what_the_network_takes_is_looked_up_once_however_often_it_is_measured(monkeypatch):
    looked = []

    def looking(model):
        looked.append(model)
        return reader(model)

    monkeypatch.setattr("bnkit.experiments.training.reader", looking)
    judge = judge_of(CLASSIFICATION, None, "cross-entropy", higher_is_better=None)
    counts = []
    for every in (10, 1):
        how = Training(0.1, steps=10, evaluate_every=every, judge=judge)
        looked.clear()
        train(net(), BATCHES, HELD_OUT, how)
        counts.append(len(looked))
    assert counts == [2, 2]  # to train and to measure


def test_a_model_in_eval_mode_is_trained_in_training_mode_and_left_in_it():
    model = net().eval()
    train(model, BATCHES, HELD_OUT, Training(0.1, steps=2, evaluate_every=1))
    assert all(module.training for module in model.modules())
    assert model[1].num_batches_tracked == 2


def test_frozen_parameters_stay():
    model = net()
    model[0].requires_grad_(False)
    before = state(model)
    train(model, BATCHES, HELD_OUT, Training(0.5, "adamw", steps=3, evaluate_every=3))
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[4].weight, before["4.weight"])


class Lasting:
    """Batches, each of which takes so many seconds of a clock to arrive."""

    now = 0.0

    def __init__(self, batches, seconds):
        self.batches, self.seconds = batches, seconds

    def __iter__(self):
        for batch in self.batches:
            Lasting.now += self.seconds
            yield batch


def test_the_clock_runs_while_it_trains_and_stands_while_it_measures(monkeypatch):
    monkeypatch.setattr("bnkit.experiments.training.time.perf_counter", lambda: Lasting.now)
    steps = Training(0.5, steps=10, evaluate_every=3)
    assert train(net(), Lasting(BATCHES, 1), Lasting(HELD_OUT, 1000), steps).seconds == 10


# The accuracies


def test_the_accuracy_is_that_of_the_running_statistics():
    model = net()
    model[3] = nn.Identity()  # dropout would tell the modes apart too
    run = train(model, BATCHES, HELD_OUT, Training(0.5, steps=5, evaluate_every=5))
    assert run.curve.metric == pytest.approx((share_right(model, mode=False),), abs=1e-15)
    assert run.curve.metric != pytest.approx((share_right(model, mode=True),))


def test_the_training_mode_accuracy_is_that_of_each_batchs_own_statistics():
    model = net()
    model[3] = nn.Identity()  # dropout is off in this measure, and on in torch's training mode
    training = Training(0.5, steps=5, evaluate_every=5, training_mode_accuracy=True)
    curve = train(model, BATCHES, HELD_OUT, training).curve
    assert curve.training_mode_metric == pytest.approx((share_right(model, mode=True),), abs=1e-15)
    assert curve.training_mode_metric != curve.metric


def test_measuring_the_training_mode_accuracy_changes_nothing():
    models = [net(), net()]
    for model, measured in zip(models, (False, True), strict=True):
        torch.manual_seed(1)
        training = Training(0.5, steps=6, evaluate_every=2, training_mode_accuracy=measured)
        train(model, BATCHES, HELD_OUT, training)
    assert_equal_states(*(model.state_dict() for model in models))


def test_accuracy_weighs_each_example_the_same_whatever_its_batch():
    scores = torch.eye(2)
    batches = [(scores[[0, 0, 0]], torch.tensor([0, 0, 0])), (scores[[0]], torch.tensor([1]))]
    assert accuracy(nn.Identity(), batches) == 0.75


def test_accuracy_leaves_the_mode_as_it_is():
    model = net()
    accuracy(model, HELD_OUT)
    assert model.training
    assert model[1].num_batches_tracked == 2  # it is the caller who chooses the mode


# Divergence


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged():
    model = nn.Linear(4, CLASSES)
    broken = [*BATCHES[:3], (torch.full((6, 4), math.nan), BATCHES[0][1])]
    run = train(model, broken, HELD_OUT, Training(0.1, steps=100, evaluate_every=2))
    assert (run.outcome, run.steps) == ("diverged", 4)
    assert run.reason == "the training loss was nan before step 4"
    assert run.curve.steps == (2, 4)
    assert run.curve.loss[0] > 0
    assert run.curve.loss[1] is None
    assert len(run.curve.metric) == 2


@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e38], ids=str)
def test_data_that_make_the_loss_infinite_or_nan_diverge_at_the_first_measurement(scale):
    batches = [(x * scale, y) for x, y in BATCHES]
    run = train(nn.Linear(4, CLASSES), batches, HELD_OUT, Training(0.1, steps=9, evaluate_every=2))
    assert (run.outcome, run.steps, run.curve.loss) == ("diverged", 2, (None,))
    assert 0 <= run.curve.metric[0] <= 1


def test_a_learning_rate_that_is_too_large_diverges():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    run = train(model, BATCHES, HELD_OUT, Training(1e20, steps=50, evaluate_every=10))
    assert run.outcome == "diverged"
    assert run.steps < 50


# Losses and optimizers


def test_the_sigmoid_cross_entropy_is_the_mean_over_examples_and_classes():
    outputs = torch.randn(5, CLASSES, dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 1, 0])
    total = 0.0
    for row, target in zip(outputs, targets, strict=True):
        for index, score in enumerate(row):
            p = 1 / (1 + math.exp(-score.item()))
            total -= math.log(p if index == target else 1 - p)
    found = LOSSES["sigmoid-cross-entropy"](outputs, targets)
    assert found.item() == pytest.approx(total / outputs.numel(), rel=1e-12)


def test_the_cross_entropy_is_the_mean_negative_log_of_softmax():
    outputs = torch.randn(4, CLASSES, dtype=torch.float64)
    targets = torch.tensor([0, 2, 1, 1])
    wanted = -outputs.softmax(1).log()[torch.arange(4), targets].mean()
    assert LOSSES["cross-entropy"](outputs, targets).item() == pytest.approx(wanted.item())


def by_sgd(w, g, _):
    return w - 0.1 * g


def by_momentum(w, g, memory):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return w - 0.1 * memory["v"]


def by_adam(w, g, memory):  # Kingma and Ba 2015, algorithm 1
    t = memory["t"] = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["s"] = 0.999 * memory.get("s", 0) + 0.001 * g * g
    mean, square = memory["m"] / (1 - 0.9**t), memory["s"] / (1 - 0.999**t)
    return w - 0.1 * mean / (square.sqrt() + 1e-8)


def by_adamw(w, g, memory):  # decay 0.01, torch's default (Loshchilov and Hutter 2019)
    return by_adam(w * (1 - 0.1 * 0.01), g, memory)


RULES = {"sgd": by_sgd, "momentum": by_momentum, "adam": by_adam, "adamw": by_adamw}


def test_every_optimizer_has_its_rule_here():
    assert RULES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("name", RULES)
def test_an_optimizer_steps_by_its_published_rule(name):
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES, bias=False).double()
    weight, memory = model.weight.detach().clone(), {}
    doubles = [(x.double(), y) for x, y in BATCHES]
    train(model, doubles, doubles, Training(0.1, name, steps=4, evaluate_every=4))
    for x, y in doubles:
        # The gradient of the mean cross-entropy: (softmax − one-hot)ᵀ x / N
        error = (x @ weight.T).softmax(1) - F.one_hot(y, CLASSES)
        weight = RULES[name](weight, error.T @ x / len(x), memory)
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("training", "text"),
    [
        (Training(0.1, optimizer="sdg"), "unknown optimizer 'sdg': did you mean 'sgd'?"),
        (Training(0.1, loss="hinge"), "unknown loss 'hinge': choose from bce, cross-entropy"),
    ],
)
def test_an_unknown_name_is_refused(training, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        train(net(), BATCHES, HELD_OUT, training)


# Batches


class Sum(nn.Module):
    """A linear layer of the sum of two inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, left, right):
        return self.layer(left + right)


@pytest.mark.parametrize(
    "dealt",
    [
        lambda x, y: ((x, x), y),
        lambda x, y: ({"right": x, "left": x}, y),
        lambda x, y: [(x, x), y],
        lambda x, y: [[x, x], y],  # torch's default collation makes lists of tuples
        lambda x, y: ((x, x), "weights", y),
    ],
    ids=["a tuple", "a dict", "a list as the batch", "lists throughout", "something between"],
)
def test_inputs_may_be_a_tuple_or_a_dict_of_arguments(dealt):
    torch.manual_seed(0)
    model = Sum()
    twin = copy.deepcopy(model.layer)
    training = Training(0.5, steps=3, evaluate_every=3)
    run = train(model, [dealt(*b) for b in BATCHES], [dealt(*b) for b in HELD_OUT], training)
    doubled = [[(2 * x, y) for x, y in part] for part in (BATCHES, HELD_OUT)]
    wanted = train(twin, *doubled, training)
    assert_equal_states(model.layer.state_dict(), twin.state_dict())
    assert run.curve == wanted.curve


def test_a_loader_is_begun_again_when_it_is_used_up():
    loader = DataLoader(TensorDataset(*examples(24)), batch_size=6)
    models = [net(), net()]
    for model, batches in zip(models, (loader, BATCHES * 3), strict=True):
        torch.manual_seed(1)
        model[3].p = 0.0  # the loader draws from the generator that dropout draws from
        train(model, batches, HELD_OUT, Training(0.5, steps=12, evaluate_every=12))
    assert_equal_states(*(model.state_dict() for model in models))


@pytest.mark.parametrize("batches", [[], iter(BATCHES)], ids=["empty", "used up after 4 steps"])
def test_training_batches_that_end_for_good_are_refused(batches):
    with pytest.raises(ValueError, match="empty, or an iterator that is used up") as raised:
        train(net(), batches, HELD_OUT, Training(0.1, steps=5, evaluate_every=5))
    assert str(raised.value) == (
        "the training batches are empty, or an iterator that is used up after one epoch: return a "
        "list or a DataLoader, which can be iterated again"
    )


def test_an_iterator_with_enough_batches_is_enough():
    run = train(net(), iter(BATCHES), HELD_OUT, Training(0.1, steps=4, evaluate_every=4))
    assert run.steps == 4


@pytest.mark.parametrize("held_out", [[], iter(HELD_OUT)], ids=["empty", "used up by the first"])
def test_held_out_batches_must_be_there_for_each_evaluation(held_out):
    with pytest.raises(ValueError, match="held-out batches are empty") as raised:
        train(net(), BATCHES, held_out, Training(0.1, steps=2, evaluate_every=1))
    assert str(raised.value) == (
        "the held-out batches are empty: there is nothing to measure accuracy on"
    )


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (torch.zeros(2, 4), "Tensor"),
        ((torch.zeros(2, 4),), "tuple of 1"),
        ([], "list of 0"),
    ],
)
def test_a_batch_that_is_no_pair_is_refused(batch, kind):
    text = (
        f"a batch is a {kind}: each must be a tuple or list with the inputs first and the targets "
        f"last"
    )
    for batches, held_out in (([batch], HELD_OUT), (BATCHES, [batch])):
        with pytest.raises(TypeError) as raised:
            train(net(), batches, held_out, Training(0.1, steps=1, evaluate_every=1))
        assert str(raised.value) == text


def test_inputs_of_no_known_kind_are_refused():
    with pytest.raises(TypeError, match="pass a tensor, a tuple of positional arguments"):
        train(net(), [(1.0, BATCHES[0][1])], HELD_OUT, Training(0.1, steps=1))
