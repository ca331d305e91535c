"""Sick and healthy trainings: the optimizer, accumulation, ranks, half precision, the gap."""

import math
import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import bnkit
from bnkit.diagnosis.diagnosing import diagnose
from bnkit.diagnosis.evidence import Parallel
from bnkit.diagnosis.gathering import gather
from bnkit.diagnosis.rules import noise
from bnkit.diagnosis.rules.table import KINDS
from bnkit.layers import FrozenBatchNorm1d
from bnkit.layers.sync import SyncBatchNorm1d
from cases import seeded
from reloading import reloaded
from zoo.checks import fingerprint, random_state

CHECKS = {rule.slug: rule.check for rule in KINDS["training"]}
KINDS_OF_USE = {rule.slug: rule.check for rule in KINDS["structure"]}


def rows(count=64, *, batches=8, shift=0.0):
    generator = seeded(0)
    return [torch.randn(count, 4, generator=generator) + shift for _ in range(batches)]


class Norm(nn.BatchNorm1d):
    """A class of the user's own."""


class Functional(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, dtype=dtype))
        self.register_buffer("mean", torch.zeros(4, dtype=dtype))
        self.register_buffer("variance", torch.ones(4, dtype=dtype))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.variance, self.gamma, None, self.training)


def network(norm=None):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), norm or nn.BatchNorm1d(4), nn.ReLU())
    return nn.Sequential(block, nn.Linear(4, 2))


def found_by(rule, model, batches=None, **options):
    evidence = gather(model, batches, **options)
    return list(CHECKS[rule](evidence))


def layers(findings):
    return {layer for finding in findings for layer in finding.layers}


# Weight decay


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


@pytest.mark.parametrize(
    ("norm", "path"),
    [(nn.BatchNorm1d(4), "0.1"), (Norm(4), "0.1"), (Functional(), "0.1")],
    ids=["plain", "a subclass", "a function"],
)
def test_weight_decay_by_the_usual_recipe_is_information(norm, path):
    model = network(norm)
    usual = sgd(model, momentum=0.9, weight_decay=1e-4)
    findings = found_by("weight-decay", model, rows(), optimizer=usual)
    assert {finding.severity for finding in findings} == {"info"}
    assert layers(findings) == {path, "0.0", "1"}  # and the biases
    (of_norm,) = (finding for finding in findings if path in finding.layers)
    assert of_norm.measured["half-life in steps"] == pytest.approx(math.log(2) / 1e-4, rel=1e-6)


def test_parameter_groups_end_weight_decay():
    model = network()
    groups = bnkit.parameter_groups(model, weight_decay=1e-4)
    assert found_by("weight-decay", model, optimizer=torch.optim.SGD(groups, lr=0.1)) == []


def test_fast_weight_decay_on_gamma_is_a_warning():
    model = network(nn.BatchNorm1d(4))
    findings = found_by("weight-decay", model, optimizer=sgd(model, weight_decay=0.05))
    assert {f.layers: f.severity for f in findings}["0.1",] == "warning"
    assert {f.layers: f.severity for f in findings}["0.0",] == "info"  # biases kill no channel


def test_frozen_parameters_do_not_decay():
    model = network().requires_grad_(False)
    assert found_by("weight-decay", model, optimizer=sgd(model, weight_decay=1.0)) == []


@pytest.mark.parametrize("rule", ["weight-decay", "missing-from-optimizer", "small-micro-batch"])
def test_without_an_optimizer_nothing_is_said_of_it(rule):
    assert found_by(rule, network(), rows()) == []


# Missing parameters


def test_parameters_that_the_optimizer_lacks_are_found_and_adding_them_fixes_it():
    model = network()
    linear = [p for name, p in model.named_parameters() if not name.startswith("0.1")]
    optimizer = torch.optim.SGD(linear, lr=0.1)
    (finding,) = found_by("missing-from-optimizer", model, optimizer=optimizer)
    assert (finding.severity, finding.layers) == ("warning", ("0.1",))
    assert finding.measured == {"parameters": 2}
    optimizer.add_param_group({"params": model[0][1].parameters()})
    assert found_by("missing-from-optimizer", model, optimizer=optimizer) == []


def test_the_optimizer_of_the_model_before_a_change_is_found():
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = sgd(plain)
    twin = bnkit.add(plain, torch.zeros(2, 4))
    (finding,) = found_by("missing-from-optimizer", twin, optimizer=optimizer)
    assert (finding.severity, finding.layers) == ("error", ("0.batchnorm",))
    assert "made for another one" in finding.why


def test_gamma_of_a_function_that_the_optimizer_lacks_is_found():
    model = network(Functional())
    linear = [p for name, p in model.named_parameters() if "gamma" not in name]
    optimizer = torch.optim.SGD(linear, lr=0.1)
    (finding,) = found_by("missing-from-optimizer", model, rows(), optimizer=optimizer)
    assert (finding.layers, finding.measured) == (("0.1",), {"parameters": 1})


def test_frozen_parameters_are_not_missing():
    model = network()
    model[0][1].requires_grad_(False)
    linear = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(linear, lr=0.1)
    assert found_by("missing-from-optimizer", model, optimizer=optimizer) == []


# Half precision


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), bnkit.BatchNorm1d(4)], ids=["torch", "bnkit"])
def test_half_precision_training_is_found_and_float32_fixes_it_and_its_consequence(norm):
    model = network(norm).bfloat16()
    batches = [batch.bfloat16() for batch in rows()]
    (finding,) = found_by("half-precision-training", model, batches)
    assert (finding.severity, finding.layers) == ("warning", ("0.1",))
    assert "bfloat16" in finding.measured["dtype"]
    fixed = finding.automatic_fix(model)
    assert fixed[0][1].weight.dtype == fixed[0][1].running_var.dtype == torch.float32
    assert fixed(batches[0]).dtype == torch.bfloat16
    assert found_by("half-precision-training", fixed, batches) == []
    of_statistics = [
        f for f in diagnose(model, batches).findings if f.rule == "half-precision-statistics"
    ]
    assert [cause.rule for cause in of_statistics[0].causes] == ["half-precision-training"]


def test_half_precision_of_a_function_is_found():
    model = network(Functional(torch.bfloat16)).bfloat16()
    findings = found_by("half-precision-training", model, [b.bfloat16() for b in rows()])
    assert [(f.layers, f.automatic_fix) for f in findings] == [(("0.1",), None)]


def test_half_precision_for_inference_is_no_training():
    assert found_by("half-precision-training", network().bfloat16().eval()) == []


# Gradient accumulation


def accumulate(model, *, micro_batches, batches):
    optimizer = torch.optim.Adam(model.parameters())
    for number, batch in enumerate(batches, start=1):
        model(batch).square().sum().backward()
        if number % micro_batches == 0:
            optimizer.step()
            optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(
    ("norm", "rest"),
    [(nn.BatchNorm1d(4), 0), (bnkit.BatchNorm1d(4), 3)],
    ids=["torch's", "bnkit's, in the middle of an accumulation"],
)
def test_small_micro_batches_are_found_by_what_was_counted_and_sharing_statistics_fixes(
    norm, rest, tmp_path
):
    model, batches = network(norm), rows(4, batches=160 + rest)
    optimizer = accumulate(model, micro_batches=4, batches=batches)
    (finding,) = found_by("small-micro-batch", model, batches, optimizer=optimizer)
    assert (finding.severity, finding.layers) == ("warning", ("0.1",))
    assert finding.measured["forwards of a step"] == 4
    fixed = finding.automatic_fix(model)
    assert fixed[0][1].micro_batches == 4
    same = reloaded(lambda: network(type(norm)(4)), finding.automatic_fix, tmp_path)
    assert same[0][1].micro_batches == 4
    fresh = accumulate(fixed, micro_batches=4, batches=batches)
    assert found_by("small-micro-batch", fixed, batches, optimizer=fresh) == []


@pytest.mark.parametrize(
    ("micro_batches", "size", "counted"),
    [(1, 4, 0), (4, 64, 0), (4, 4, 1001)],
    ids=["no accumulation", "micro-batches that are large enough", "a pretrained layer"],
)
def test_other_trainings_do_not_accumulate_too_little(micro_batches, size, counted):
    model, batches = network(), rows(size, batches=160)
    model[0][1].num_batches_tracked.fill_(counted)
    optimizer = accumulate(model, micro_batches=micro_batches, batches=batches)
    assert found_by("small-micro-batch", model, batches, optimizer=optimizer) == []


# Ranks


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), Norm(4)], ids=["plain", "a subclass"])
def test_batch_norms_of_several_ranks_with_few_samples_are_found(norm, monkeypatch):
    monkeypatch.setattr(noise, "world_size", lambda: 4)
    (finding,) = found_by("unsynchronised", network(norm), rows(4, batches=40))
    assert (finding.severity, finding.layers) == ("warning", ("0.1",))
    assert finding.measured["ranks"] == 4
    fixed = finding.automatic_fix(network(norm))
    assert isinstance(fixed[0][1], SyncBatchNorm1d)
    assert found_by("unsynchronised", fixed, rows(4, batches=40)) == []


def test_enough_samples_a_rank_need_no_synchronisation(monkeypatch):
    monkeypatch.setattr(noise, "world_size", lambda: 4)
    assert found_by("unsynchronised", network(), rows()) == []


def test_a_wrapper_says_that_there_are_several_ranks():
    evidence = gather(network(), rows(4, batches=40))
    assert list(CHECKS["unsynchronised"](evidence)) == []
    wrapped = replace(evidence, parallel=(Parallel("", broadcasts_buffers=True),))
    assert [f.layers for f in CHECKS["unsynchronised"](wrapped)] == [("0.1",)]
    without = replace(gather(network()), parallel=wrapped.parallel)
    assert [f.severity for f in CHECKS["unsynchronised"](without)] == ["info"]


@pytest.mark.parametrize(
    ("norm", "count", "severity"),
    [
        (SyncBatchNorm1d(4), 64, "info"),
        (SyncBatchNorm1d(4), 4, "warning"),
        (nn.SyncBatchNorm(4), 4, "warning"),
    ],
    ids=["large mini-batches", "small ones", "torch's"],
)
def test_a_synchronised_layer_that_is_alone_is_found_and_made_plain(norm, count, severity):
    model, batches = network(norm), rows(count, batches=40)
    (finding,) = found_by("sync-without-group", model, batches)
    assert (finding.severity, finding.layers) == (severity, ("0.1",))
    if isinstance(norm, nn.SyncBatchNorm):  # whose class does not say of what rank it is
        assert finding.automatic_fix is None
        return
    fixed = finding.automatic_fix(model)
    assert found_by("sync-without-group", fixed, batches) == []
    with torch.no_grad():
        assert torch.equal(fixed.eval()(batches[0]), model.eval()(batches[0]))


def test_a_synchronised_layer_that_meets_others_is_healthy(monkeypatch):
    monkeypatch.setattr(noise, "world_size", lambda: 2)
    evidence = gather(network(SyncBatchNorm1d(4)), rows(4))
    assert list(CHECKS["sync-without-group"](evidence)) == []
    assert list(CHECKS["unsynchronised"](evidence)) == []


# The gap


def settled(model, batches):
    """Return the model, in eval mode, with the statistics of these mini-batches."""
    return bnkit.recalibrate(model, batches, progress=False).eval()


@pytest.mark.parametrize("path", ["first", "second"])
def test_the_gap_is_found_where_it_opens_and_its_fix_closes_it(path):
    torch.manual_seed(0)
    blocks = {"first": network()[0], "second": network(Norm(4))[0], "head": nn.Linear(4, 2)}
    model = settled(nn.Sequential(OrderedDict(blocks)), rows())
    norm = model.get_submodule(path)[1]
    norm.running_mean += 6 * norm.running_var.sqrt()
    before, state = str(fingerprint(model)), random_state()
    (finding,) = found_by("train-eval-gap", model, rows())
    assert finding.layers == (f"{path}.1",)
    assert finding.severity in {"warning", "error"}
    assert finding.measured["output difference"] > 0.5
    assert found_by("train-eval-gap", finding.automatic_fix(model), rows()) == []
    assert (str(fingerprint(model)), random_state()) == (before, state)


def labelled(batches):
    generator = seeded(1)
    return [(x, torch.randint(0, 2, (len(x),), generator=generator)) for x in batches]


def test_the_gap_is_told_in_the_loss_by_batch_statistics_and_in_eval_mode():
    model = settled(network(), rows(shift=5.0))
    batches = labelled([*rows(shift=0.0), *rows(16, batches=1)])  # which counts by its rows
    (finding,) = found_by("train-eval-gap", model, batches, loss=F.cross_entropy)
    total = sum(len(x) for x, _ in batches)

    def mean_loss():
        with torch.no_grad():
            return sum(len(x) * F.cross_entropy(model(x), y).item() for x, y in batches) / total

    assert finding.measured["loss in eval mode"] == pytest.approx(mean_loss(), rel=1e-5)
    model.train()
    assert finding.measured["loss by batch statistics"] == pytest.approx(mean_loss(), rel=1e-5)


def test_the_gap_follows_from_stale_statistics():
    model = settled(network(), rows(shift=5.0))
    diagnosis = diagnose(model, rows(), progress=False)
    gap = next(f for f in diagnosis.findings if f.rule == "train-eval-gap")
    assert "stale-statistics" in [cause.rule for cause in gap.causes]
    fixed = diagnose(diagnosis.fixed(model), rows(), progress=False)
    assert not {"train-eval-gap", "stale-statistics"} & {f.rule for f in fixed.findings}


def test_an_example_alone_shows_the_gap():
    model = settled(network(), rows(shift=9.0))
    (finding,) = found_by("train-eval-gap", model, example=torch.cat(rows()))
    # One example is not a population.
    assert (finding.layers, finding.automatic_fix) == (("0.1",), None)
    assert finding.measured["output difference"] > 0.5


def test_poisoned_statistics_are_an_error():
    model = settled(network(), rows())
    model[0][1].running_var[0] = math.nan
    (finding,) = found_by("train-eval-gap", model, rows())
    assert (finding.severity, finding.layers) == ("error", ("0.1",))


def test_the_gap_of_a_fresh_network_in_training_is_information():
    (finding,) = found_by("train-eval-gap", network(nn.BatchNorm1d(4)), rows(shift=9.0))
    assert finding.severity == "info"


@pytest.mark.parametrize(
    "model",
    [nn.Linear(4, 2), nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))],
    ids=["no batch norm", "no running statistics"],
)
def test_where_there_is_nothing_to_compare_there_is_no_gap(model):
    assert found_by("train-eval-gap", model, rows()) == []


def test_a_model_that_agrees_with_itself_has_no_gap():
    assert found_by("train-eval-gap", settled(network(), rows()), rows()) == []


def test_the_optimizer_stays_as_it_is():
    model, batches = network(), rows(4, batches=16)
    optimizer = accumulate(model, micro_batches=8, batches=batches)
    before = str(optimizer.state_dict())
    diagnose(model, batches, optimizer=optimizer, progress=False)
    assert str(optimizer.state_dict()) == before


@pytest.mark.parametrize(
    ("batches", "loss", "error", "words"),
    [
        (labelled(rows()), "mse", TypeError, "`loss` is a str: pass a function of the model's out"),
        (rows(), F.cross_entropy, ValueError, "a mini-batch of `batches` has no target: pass mini"),
        (None, F.cross_entropy, ValueError, "`loss` is given and `batches` are not: pass those"),
        (
            labelled(rows()),
            lambda output, target: F.cross_entropy(output, target, reduction="none"),
            TypeError,
            r"`loss` returned a Tensor of shape \(64,\): it must return one number",
        ),
    ],
    ids=["no function", "no targets", "no batches", "no mean"],
)
def test_a_loss_that_cannot_be_taken_is_refused(batches, loss, error, words):
    model = network()
    before, state = str(fingerprint(model)), random_state()
    with pytest.raises(error, match=words):
        diagnose(model, batches, loss=loss, progress=False)
    assert (str(fingerprint(model)), random_state()) == (before, state)


@pytest.mark.parametrize(
    "batch",
    [
        {"input": torch.ones(2, 4), "labels": torch.ones(2)},
        [{"input": torch.ones(2, 4), "target": torch.ones(2)}],
        (torch.ones(2, 4), "weights", torch.ones(2)),
    ],
    ids=["a dict", "a dict in a list of one", "last of three"],
)
def test_targets_are_found_where_loaders_put_them(batch):
    targets = []
    evidence = gather(
        nn.BatchNorm1d(4), [batch], loss=lambda _, target: targets.append(target) or 1
    )
    assert evidence.losses == (1.0, 1.0)
    assert all(torch.equal(target, torch.ones(2)) for target in targets)


# Parts that no gradient reaches: teachers, momentum encoders


def student(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


class Taught(nn.Module):
    """A teacher beside the student, cut off in one of several ways."""

    def __init__(self, how="no_grad", teacher=None):
        super().__init__()
        self.how, self.teacher, self.student = how, teacher or student(), student()

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                target = self.teacher(x)
        elif self.how == "inference":
            with torch.inference_mode():
                target = self.teacher(x)
            target = target.clone()
        elif self.how == "detached":
            target = self.teacher(x).detach()
        else:
            target = self.teacher(x)
        return self.student(x) - target


class OfFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = Functional(), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.norm(x))


def taught(how="no_grad", teacher=None, *, shift=0.0):
    """Return a model whose teacher has the statistics of data that are shifted so far."""
    torch.manual_seed(0)
    model = Taught(how, teacher)
    for x in rows(batches=40, shift=shift):
        model.teacher(x)
    return model


CUT_OFF = ["no_grad", "inference", "detached"]


@pytest.mark.parametrize("how", CUT_OFF)
def test_a_teacher_is_not_missing_from_the_optimizer_but_its_statistics_move(how):
    model = taught(how, shift=3.0)
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    assert found_by("missing-from-optimizer", model, rows(), optimizer=optimizer) == []
    (finding,) = KINDS_OF_USE["frozen-but-batch-statistics"](gather(model, rows()))
    assert (finding.severity, finding.layers) == ("warning", ("teacher.1",))
    assert finding.measured["how"] == "no gradient reaches it"
    fixed = finding.automatic_fix(model)
    before = fixed.teacher[1].running_mean.clone()
    fixed(rows()[0])
    assert torch.equal(fixed.teacher[1].running_mean, before)
    code = re.search(r"model = (bnkit.*\[\.\.\.\]\))", finding.fix)[1]
    by_hand = eval(code.replace("[...]", str(list(finding.layers))))
    kinds = [type(by_hand.get_submodule(path)) for path in ("teacher.1", "student.1")]
    assert kinds == [FrozenBatchNorm1d, nn.BatchNorm1d]  # the student trains


@pytest.mark.parametrize("how", CUT_OFF)
def test_a_momentum_encoder_of_the_same_data_is_information(how):
    (finding,) = KINDS_OF_USE["frozen-but-batch-statistics"](gather(taught(how), rows()))
    assert (finding.severity, finding.layers) == ("info", ("teacher.1",))


def test_a_part_that_gradients_reach_is_missing_from_the_optimizer_as_before():
    model = taught("trained")
    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    (finding,) = found_by("missing-from-optimizer", model, rows(), optimizer=optimizer)
    assert finding.layers == ("teacher.1",)
    assert list(KINDS_OF_USE["frozen-but-batch-statistics"](gather(model, rows()))) == []


def test_a_teacher_of_functions_or_without_parameters_of_its_own_is_seen_too():
    optimizer_of = torch.optim.SGD
    model = taught(teacher=OfFunctions())
    optimizer = optimizer_of(model.student.parameters(), lr=0.1)
    assert found_by("missing-from-optimizer", model, rows(), optimizer=optimizer) == []
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2))
    evidence = gather(taught(teacher=plain, shift=3.0), rows())
    (finding,) = KINDS_OF_USE["frozen-but-batch-statistics"](evidence)
    assert (finding.severity, finding.layers) == ("warning", ("teacher.1",))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_part_that_checkpointing_runs_again_is_not_cut_off(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=reentrant)

    evidence = gather(Checkpointed(), rows())
    assert evidence.step.cut_off == frozenset()


def test_weight_decay_does_not_reach_what_gets_no_gradient():
    model = taught(shift=3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    found = found_by("weight-decay", model, rows(), optimizer=optimizer)
    assert {layer.partition(".")[0] for layer in layers(found)} == {"student"}


class Positive(nn.Module):
    def forward(self, value):
        return F.softplus(value)


def parametrised(layer):
    parametrize.register_parametrization(layer, "weight", Positive())


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)


def weight_normed(layer):
    parametrizations.weight_norm(layer, "weight", dim=None)


@pytest.mark.parametrize("change", [parametrised, pruned, weight_normed])
def test_the_decay_of_a_gamma_that_is_computed_is_that_of_gamma(change):
    model = network()
    change(model[0][1])
    of_norm = len(list(model[0][1].parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    found = found_by("weight-decay", model, optimizer=optimizer)
    (warned,) = (finding for finding in found if finding.severity == "warning")
    assert (warned.layers, warned.measured["parameters"]) == (("0.1",), of_norm)
    lacking = torch.optim.SGD(model[1].parameters(), lr=0.1)
    (missing,) = found_by("missing-from-optimizer", model, optimizer=lacking)
    assert missing.measured["parameters"] == of_norm
