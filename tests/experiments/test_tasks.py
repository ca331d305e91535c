"""Tasks by their targets and outputs, what reads batches, metrics, and networks trained by them."""

import math
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as oracles
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnkit.experiments.comparison import plan_comparison
from bnkit.experiments.settings import Settings
from bnkit.experiments.tasks import LOSSES, METRICS, judge_of, logits_of, reader, task_of

R = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(shape, generator=R)


def ints(high, *shape):
    return torch.randint(high, shape, generator=R)


LABELS_OF_TOKENS = torch.tensor([[0, 1, 2, -100], [2, 1, -100, -100]])
PIXELS = ints(3, 2, 4, 4).index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(255))


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "task"),
    [
        (rand(6, 3), ints(3, 6), None, "classification"),
        (rand(6, 3), ints(3, 6).int(), None, "classification"),
        (rand(6, 3), ints(2, 6, 3).float(), None, "multi-label classification"),
        (rand(6, 3), ints(2, 6, 3), None, "multi-label classification"),
        (rand(6, 1), rand(6), None, "regression"),
        (rand(6), rand(6, 1), None, "regression"),
        (rand(6, 2), rand(6, 2), None, "regression"),
        (rand(6, 1), ints(9, 6), "mae", "regression"),
        (rand(6), ints(2, 6), "bce", "binary classification"),
        (rand(2, 3, 4, 4), PIXELS, None, "segmentation"),
        (rand(2, 4, 3), LABELS_OF_TOKENS, None, "sequence labelling"),
        (rand(2, 3, 4), LABELS_OF_TOKENS, None, "sequence labelling"),
    ],
)
def test_a_task_is_recognised_and_its_loss_and_metrics_are_those_of_its_values(
    outputs, targets, loss, task
):
    found = task_of(outputs, targets, loss=loss)
    assert found.name == task
    outputs, targets = found.aligned(outputs, targets)
    for name in found.losses:
        if name != "sigmoid-cross-entropy":
            assert math.isfinite(LOSSES[name](outputs, targets))
    judge = judge_of(found, None, found.loss, higher_is_better=None)
    assert judge.metric == METRICS[found.metrics[0]]


def test_the_number_that_stands_for_no_class_is_not_counted():
    outputs = rand(2, 3, 4, 4)
    task = task_of(outputs, PIXELS)
    assert task.ignored == 255
    loss = F.cross_entropy(*task.aligned(outputs, PIXELS))
    assert loss == F.cross_entropy(outputs, PIXELS, ignore_index=255)
    assert task_of(rand(2, 3, 4, 4), PIXELS.clamp(max=2)).ignored == -100
    last = rand(2, 4, 3)
    task = task_of(last, LABELS_OF_TOKENS)
    expected = F.cross_entropy(last.reshape(8, 3), LABELS_OF_TOKENS.reshape(8))
    assert F.cross_entropy(*task.aligned(last, LABELS_OF_TOKENS)) == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "message"),
    [
        (rand(6, 1), ints(9, 6) + 2, None, "may be counts, or class numbers, with outputs of"),
        (rand(6), ints(2, 6), None, "may be two classes or numbers, with outputs of shape"),
        (rand(6, 1), ints(2, 6).float(), None, "say which by `loss`, 'bce' for two classes, 'mse'"),
        (rand(6, 4), rand(6, 3), None, "the network returns (6, 4) for targets of torch.float32"),
        (rand(2, 3, 4, 4), ints(3, 2, 5, 5), None, "one score of each class for each target"),
        (rand(2, 4, 4), ints(4, 2, 4), None, "the classes may be its second or its last axis"),
        (rand(6, 3), ints(3, 6).float(), None, "class numbers an integer type, as by targets.lo"),
        (rand(6, 3), F.one_hot(ints(3, 6), 3), None, "a single 1 in each row, so they may be cla"),
        (rand(2, 1, 4, 4), ints(2, 2, 4, 4), None, "may be two classes or numbers, with outputs"),
        (rand(2, 3, 4, 4), PIXELS - 1, None, "the targets hold -1, 254, and the network has sco"),
    ],
)
def test_what_may_be_two_tasks_or_none_is_refused_with_the_choices(outputs, targets, loss, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the text is looked at
        task_of(outputs, targets, loss=loss)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "name"),
    [
        (rand(6, 3), ints(3, 6, 1), None, "classification"),
        (rand(1, 1), rand(1), None, "regression"),
        (rand(2, 1, 4, 4), rand(2, 4, 4), None, "regression"),
        (rand(2, 1, 4, 4), ints(2, 2, 4, 4).bool(), "bce", "binary segmentation"),
        (rand(2, 1, 4, 4), ints(2, 2, 1, 4, 4).float(), "bce", "binary segmentation"),
        (rand(6, 3), F.one_hot(ints(3, 6), 3), "bce", "multi-label classification"),
    ],
)
def test_an_axis_of_one_is_no_difference(outputs, targets, loss, name):
    task = task_of(outputs, targets, loss=loss)
    assert task.name == name
    scores, numbers = task.aligned(outputs, targets)
    assert torch.equal(numbers.flatten(), targets.flatten())
    assert math.isfinite(LOSSES[task.loss](scores, numbers))


def test_a_number_that_stands_for_no_class_may_be_in_later_batches_only():
    outputs, targets = rand(2, 3, 4, 4), ints(3, 2, 4, 4)
    assert task_of(outputs, targets, marks={255}).ignored == 255
    assert task_of(rand(2, 300, 4, 4), targets, marks={255}).ignored == -100  # it is a class


def test_a_batch_of_padding_alone_has_no_loss_instead_of_nan():
    outputs = rand(2, 3, 5).requires_grad_()
    loss = LOSSES["cross-entropy"](outputs, torch.full((2, 5), -100))
    loss.backward()
    assert (loss.item(), outputs.grad.abs().sum().item()) == (0, 0)
    targets = ints(3, 2, 5).index_fill(1, torch.tensor([1, 4]), -100)
    expected = F.cross_entropy(outputs, targets).item()
    assert LOSSES["cross-entropy"](outputs, targets).item() == pytest.approx(expected)


# Batches and outputs


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.last = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = torch.relu(self.hidden(self.embed(input_ids)))
        mask = attention_mask[..., None].float()
        logits = self.last((hidden * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


IDS, MASK, KIND = ints(9, 24, 5), torch.ones(24, 5).long(), ints(2, 24)


def test_batches_are_read_as_loaders_give_them():
    read = reader(Masked())
    (batch,) = DataLoader(TensorDataset(IDS, MASK, KIND), batch_size=24)
    inputs, targets = read(batch)
    assert torch.equal(inputs[0], IDS)
    assert torch.equal(inputs[1], MASK)
    assert torch.equal(targets, KIND)
    named = {"input_ids": IDS, "attention_mask": MASK, "labels": KIND}
    assert read(named) == (named, KIND)
    inputs, targets = reader(nn.Linear(2, 2))({"input": IDS, "target": KIND})
    assert (list(inputs), targets is KIND) == (["input"], True)
    weights = torch.ones(24)  # of the examples: the network does not take them
    assert reader(nn.Linear(2, 2))([IDS, weights, KIND])[0] is IDS
    for wrong in ({"x": IDS}, {"label": KIND, "labels": KIND}):
        with pytest.raises(TypeError, match="its targets must stand under one of label, labels"):
            read(wrong)


def test_outputs_that_hold_no_scores_are_refused():
    assert torch.equal(logits_of({"logits": MASK}), MASK)
    with pytest.raises(TypeError, match="the network returns a tuple: it must return a tensor"):
        logits_of((MASK, MASK))


# Metrics


def macro_f1(outputs, targets):
    return oracles.f1_score(targets, outputs.argmax(1), average="macro")


def explained(outputs, targets):
    spread = ((targets - targets.mean(0)) ** 2).sum(0)
    return 1 - (((targets - outputs) ** 2).sum(0) / spread).mean()


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "expected"),
    [
        ("accuracy", rand(9, 3), ints(3, 9), lambda o, t: (o.argmax(1) == t).double().mean()),
        ("f1", rand(9, 3), ints(3, 9), macro_f1),
        ("r2", rand(9, 2), rand(9, 2), explained),
        ("mae", rand(9, 1), rand(9), lambda o, t: (o[:, 0] - t).abs().mean()),
        ("loss", rand(9, 3), ints(3, 9), F.cross_entropy),
    ],
)
def test_a_metric_is_that_of_all_batches_together(name, outputs, targets, expected):
    task = task_of(outputs, targets)
    judge = judge_of(task, name, task.loss, higher_is_better=None)
    batches = list(zip(outputs.split(4), targets.split(4), strict=True))
    found = judge(lambda batch: (*batch, None), batches)
    assert found == pytest.approx(float(expected(outputs, targets)), abs=1e-6)
    with pytest.raises(ValueError, match=f"empty: there is nothing to measure {name} on"):
        judge(lambda batch: (*batch, None), [])


def test_the_mean_intersection_over_union_is_that_of_the_counted_pixels():
    outputs = rand(2, 3, 4, 4)
    judge = judge_of(task_of(outputs, PIXELS), "iou", "cross-entropy", higher_is_better=None)
    found = judge(lambda batch: (*batch, None), [(outputs, PIXELS)])
    shares = []
    for kind in range(3):
        ours, theirs = (outputs.argmax(1) == kind) & (PIXELS != 255), kind == PIXELS
        shares.append(((ours & theirs).sum() / (ours | theirs).sum()).item())
    assert found == pytest.approx(sum(shares) / 3)


def test_a_metric_may_be_a_function_or_an_object_of_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    outputs, targets = rand(9, 3), ints(3, 9)
    task = task_of(outputs, targets)
    known = judge_of(
        task, torchmetrics.classification.MulticlassAccuracy(3, average="micro"), task.loss,
        higher_is_better=None,
    )  # fmt: skip
    assert (known.metric.name, known.metric.higher_is_better) == ("MulticlassAccuracy", True)
    batches = list(zip(outputs.split(4), targets.split(4), strict=True))
    share = (outputs.argmax(1) == targets).double().mean().item()
    for _ in range(2):  # it is begun anew
        assert known(lambda batch: (*batch, None), batches) == pytest.approx(share)

    def largest(outputs, _targets):
        return outputs.max()

    with pytest.raises(ValueError, match="`metric` is 'largest', of which it is not known whether"):
        judge_of(task, largest, task.loss, higher_is_better=None)
    own = judge_of(task, largest, task.loss, higher_is_better=False)
    assert own(lambda batch: (*batch, None), batches) == outputs.max()


def judged(name, batches, loss=None, **options):
    task = task_of(*batches[0], loss=loss)
    judge = judge_of(task, name, loss or task.loss, **{"higher_is_better": None} | options)
    # As a process gets it, where it is not the same object.
    return pickle.loads(pickle.dumps(judge))(lambda batch: (*batch, None), batches)


@pytest.mark.parametrize("name", ["accuracy", "f1", "loss"])
def test_sequences_are_judged_together_whatever_length_their_batches_are_padded_to(name):
    batches = [(rand(2, n, 3), ints(3, 2, n)) for n in (5, 7)]
    batches[0][1][:, 3:] = -100
    batches.append((rand(2, 4, 3), torch.full((2, 4), -100)))
    outputs = torch.cat([each.reshape(-1, 3) for each, _ in batches])
    targets = torch.cat([each.flatten() for _, each in batches])
    outputs, targets = outputs[targets != -100], targets[targets != -100]
    expected = {
        "accuracy": lambda: (outputs.argmax(1) == targets).double().mean(),
        "f1": lambda: macro_f1(outputs, targets),
        "loss": lambda: F.cross_entropy(outputs, targets),
    }
    assert judged(name, batches) == pytest.approx(float(expected[name]()), abs=1e-6)
    with pytest.raises(ValueError, match="all targets of the held-out batches are -100, which is"):
        judged(name, batches[2:])


def test_a_metric_that_needs_one_length_says_so():
    batches = [(rand(2, n, 3), ints(3, 2, n)) for n in (5, 7)]

    def share(outputs, targets):
        return (outputs.argmax(-1) == targets).float().mean()

    message = r"have shapes \(-1, 5, 3\) and \(-1, 7, 3\), which share cannot take together: pad"
    judge = judge_of(task_of(*batches[0]), share, "cross-entropy", higher_is_better=True)
    with pytest.raises(ValueError, match=message):
        judge(lambda batch: (*batch, None), batches)
    numbers = [(rand(2, n), rand(2, n)) for n in (5, 7)]
    ours, theirs = (torch.cat([pair[side].flatten() for pair in numbers]) for side in (0, 1))
    assert judged("mae", numbers) == pytest.approx(float((ours - theirs).abs().mean()), abs=1e-6)


def test_masks_of_one_channel_are_judged_by_their_ones():
    outputs, masks = rand(3, 1, 4, 4), ints(2, 3, 4, 4)
    found, true = (outputs[:, 0] > 0).flatten(), masks.bool().flatten()
    both, either = (found & true).sum().item(), (found | true).sum().item()
    for masked in (masks.bool(), masks.float()[:, None]):
        batches = [(outputs, masked)]
        assert judged("iou", batches, "bce") == pytest.approx(both / either)
        assert judged("f1", batches, "bce") == pytest.approx(2 * both / (both + either))


@pytest.mark.parametrize("name", ["r2", "mse"])
@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_outputs_of_a_network_that_has_diverged_have_no_metric(name, lost):
    assert not math.isfinite(judged(name, [(torch.full((4, 1), lost), rand(4))]))
    assert math.isfinite(judged("r2", [(torch.full((4, 1), 1e30), rand(4))]))


# Networks trained


def conv_of(outputs):
    return lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, outputs, 1))


def dense(outputs, inputs=4):
    return lambda: nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


def pinball(outputs, targets):
    return torch.maximum(0.9 * (targets - outputs[:, 0]), 0.1 * (outputs[:, 0] - targets)).mean()


def energy(outputs, _targets):
    return (outputs**2).mean()


def over(outputs, targets):
    return float((outputs[:, 0] > targets).float().mean())


def nesterov(parameters, learning_rate):
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, nesterov=True)


def halving(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


X = rand(24, 4)
NUMBERS = (X, X.sum(1))
OF_TOKENS = {"input_ids": IDS, "attention_mask": MASK, "labels": KIND}


def run(build, batch, **options):
    options = {"learning_rates": [0.1], "seeds": 1, "steps": 4, "evaluate_every": 2} | options
    settings = Settings(**options)
    sweep = plan_comparison(build, lambda: ([batch], [batch]), settings=settings, out="unused")
    results = [trial.run() for trial in sweep.trials]
    assert [result.reason for result in results] == ["", ""]
    assert all(
        math.isfinite(result.metric) and result.metric == result.test_metric for result in results
    )
    return sweep.metric, results


@pytest.mark.parametrize(
    ("build", "batch", "options", "metric"),
    [
        (dense(1), NUMBERS, {}, "mse"),
        (dense(1), NUMBERS, {"loss": "huber", "metric": "r2"}, "r2"),
        (dense(1), NUMBERS, {"loss": pinball, "metric": over, "higher_is_better": True}, "over"),
        (dense(5), (X, X[:, :2]), {"loss": energy, "metric": "loss"}, "loss"),
        (dense(1), (X, KIND), {"loss": "bce"}, "accuracy"),
        (dense(3), (X, ints(2, 24, 3).float()), {"optimizer": nesterov, "schedule": halving}, "f1"),
        (conv_of(3), (rand(4, 1, 6, 6), ints(3, 4, 6, 6)), {"schedule": "warmup-cosine"}, "iou"),
        (Masked, [IDS, MASK, KIND], {"optimizer": "adamw", "weight_decay": 0.1}, "accuracy"),
        (Masked, OF_TOKENS, {"clip": 0.1, "schedule": "cosine"}, "accuracy"),
        (dense(1), (X, ints(9, 24)), {"loss": "huber", "precision": "float16"}, "mse"),
        (conv_of(1), (rand(4, 1, 6, 6), ints(2, 4, 6, 6)), {"loss": "bce"}, "iou"),
        (dense(3), (X, ints(3, 24)), {"precision": "bfloat16", "schedule": "step"}, "accuracy"),
        (dense(3), (X, ints(3, 24)), {"precision": "float16", "clip": 1.0}, "accuracy"),
        (dense(3), (X, ints(3, 24)), {"metric": "loss", "training_mode_accuracy": True}, "loss"),
    ],
)
def test_both_sides_are_trained_and_judged(build, batch, options, metric):
    assert run(build, batch, **options)[0].name == metric


class Shifted(Masked):
    """Has a loss that no other could know."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        found = super().forward(input_ids, attention_mask, labels)
        return SimpleNamespace(logits=found.logits, loss=found.loss * 3 + 1)


def test_a_network_that_computes_another_loss_is_trained_and_judged_by_its_own():
    metric, (plain, _) = run(Shifted, OF_TOKENS)
    assert (metric.name, metric.higher_is_better) == ("loss", False)
    assert plain.metric > 1


def test_an_option_of_the_training_does_what_it_says():
    def steps(**options):
        return run(dense(1), NUMBERS, steps=6, **options)[1][0].curve.loss

    usual = steps()
    assert steps() == usual
    for options in (
        {"schedule": "cosine"},
        {"clip": 0.01},
        {"weight_decay": 1.0},
        {"loss": "mae"},
        {"precision": "bfloat16"},
    ):
        assert steps(**options) != usual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "iou"}, "`metric` is 'iou', and the task is regression: choose from mse,"),
        (
            {"loss": "cross-entropy"},
            "`loss` is 'cross-entropy', and the task is regression: cho",
        ),
        ({"metric": "wonder"}, "unknown metric 'wonder'"),
        ({"device": "cuda:77"}, "`device` is 'cuda:77', which is not there: pass auto"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_before_anything_runs(options, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the text is looked at
        run(dense(1), NUMBERS, **options)
    assert message in str(raised.value)
