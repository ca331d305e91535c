import pytest
import torch
from torch import nn

from bnkit import add
from bnkit.diagnosis import Finding, diagnose
from bnkit.diagnosis.diagnosing import linked
from bnkit.diagnosis.rules.table import RULES, Rule
from bnkit.surgery import SurgeryError
from models import MODELS
from zoo.checks import fingerprint, random_state


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


class Failing(Biased):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("it broke")


def images(number=3, rows=8):
    return [torch.randn(rows, 3, 6, 6) for _ in range(number)]


def seeded(build=Biased):
    torch.manual_seed(0)
    return build()


def biases(*args, **options):
    found = diagnose(*args, progress=False, **options).findings
    return [finding.layers[0] for finding in found if finding.rule == "cancelled-bias"]


def test_slugs_are_unique_and_documented_and_every_rule_that_is_followed_exists():
    slugs = [rule.slug for rule in RULES]
    assert len({*slugs}) == len(slugs)
    assert {name for rule in RULES for name in rule.follows} <= {*slugs}
    assert [rule.slug for rule in RULES if not rule.check.__doc__ or not rule.summary] == []


def test_the_worst_comes_first():
    severities = [f.severity for f in diagnose(seeded(), images(), progress=False).findings]
    order = ["error", "warning", "info"]
    assert severities == sorted(severities, key=order.index)


def test_rules_are_switched_off_everywhere_or_by_the_path_of_a_layer():
    model = seeded()
    assert biases(model, images()) == ["body.0", "head.0"]
    assert biases(model, images(), skip=["cancelled-bias"]) == []
    assert biases(model, images(), skip=["cancelled-bias:head.*"]) == ["body.0"]
    assert biases(model, images(), skip=("cancelled-bias:body.1", "cancelled-bias:head.1")) == []


@pytest.mark.parametrize(
    ("skip", "error", "words"),
    [
        (["bias"], ValueError, "no rule is called 'bias': the rules are"),
        (["cancelled-bias:foot"], ValueError, "no layer of the model matches 'foot'"),
        ("cancelled-bias", TypeError, r"pass a list of such, \['cancelled-bias'\]"),
        (None, TypeError, "`skip` is None: pass a list of names of rules"),
        ([3], TypeError, r"`skip` is \[3\]: pass a list of names of rules"),
    ],
)
def test_a_wrong_switch_is_refused_before_anything_runs(skip, error, words):
    with pytest.raises(error, match=words):
        diagnose(seeded(Failing), iter([]), skip=skip)


def test_a_finding_follows_from_one_of_a_rule_that_its_rule_follows_in_the_same_layer():
    rules = [Rule(slug, "", lambda _: (), follows) for slug, follows in (("a", ("b",)), ("b", ()))]
    here, there = (Finding("b", "info", (layer,), {}, "", "") for layer in ("x", "y"))
    found = linked([Finding("a", "info", ("x",), {}, "", ""), here, there], rules)
    assert [finding.causes for finding in found] == [(here,), (), ()]


def test_statistics_of_the_constructor_follow_from_nothing_else():
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.99), nn.Linear(2, 2)).eval()
    fixed = torch.Generator().manual_seed(0)
    batches = [torch.randn(32, 2, generator=fixed) * 9 + 4 for _ in range(4)]

    def causes():
        found = diagnose(model, batches, progress=False).findings
        (stale,) = (finding for finding in found if finding.rule == "stale-statistics")
        assert "momentum-convention" in {finding.rule for finding in found}
        return [cause.rule for cause in stale.causes]

    assert causes() == ["never-updated"]
    model[0].running_mean += 100.0
    assert causes() == ["momentum-convention"]


def test_a_model_that_fails_gets_the_rules_that_need_no_run():
    model = seeded(Failing)
    model.body[1].momentum = 0.0
    found = diagnose(model, images(), progress=False)
    assert [f.layers for f in found.findings if f.rule.startswith("frozen")] == [("body.1",)]
    assert "it broke" in found.not_run[0]
    assert "it broke" in str(found)


def test_without_anything_to_run_on_it_says_so():
    assert diagnose(seeded()).not_run == ("neither an example nor mini-batches were given",)


@pytest.mark.parametrize("build", [Biased, Failing])
@pytest.mark.parametrize("training", [True, False])
def test_model_example_and_random_generators_stay_as_they_are(build, training):
    model, batches = seeded(build).train(training), images()
    before, copies, state = fingerprint(model), [b.clone() for b in batches], random_state()
    diagnose(model, batches, example=batches[0], progress=False)
    assert (fingerprint(model), random_state()) == (before, state)
    assert all(map(torch.equal, batches, copies))


def test_they_stay_as_they_are_when_a_loader_breaks():
    def broken():
        yield images()[0]
        torch.rand(3)
        raise OSError("disk")

    model = seeded()
    batches = broken()
    before = fingerprint(model)
    with pytest.raises(OSError, match="disk"):
        diagnose(model, batches, progress=False)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3,), TypeError, r"`model` is a int: pass a torch\.nn\.Module"),
        ((nn.BatchNorm1d(2), []), ValueError, "`batches` gave no mini-batch"),
        ((nn.BatchNorm1d(2), 5), TypeError, "`batches` is a int"),
    ],
)
def test_bad_input_is_refused_as_in_other_verbs(arguments, error, words):
    with pytest.raises(error, match=words):
        diagnose(*arguments, progress=False)


def test_an_optimizer_that_is_none_and_an_example_that_is_none_are_refused():
    with pytest.raises(TypeError, match=r"`optimizer` is a list: pass the torch\.optim"):
        diagnose(seeded(), optimizer=[])
    with pytest.raises(TypeError, match="`example` is a list"):
        diagnose(seeded(), example=[torch.zeros(1)])


@pytest.mark.parametrize("training", [True, False])
def test_a_diagnosis_costs_at_most_ten_forward_passes(monkeypatch, training):
    passes = []
    monkeypatch.setattr(
        Biased,
        "forward",
        lambda self, x, plain=Biased.forward: passes.append(len(x)) or plain(self, x),
    )
    batches = [torch.randn(rows, 3, 6, 6) for rows in (5, 6, 7)]
    model = seeded().train(training)
    diagnose(model, batches, optimizer=torch.optim.SGD(model.parameters(), 0.1), progress=False)
    assert {rows: passes.count(rows) <= 10 for rows in (5, 6, 7)} == dict.fromkeys((5, 6, 7), True)


def with_batch_norm(awkward):
    model = awkward.seeded()
    try:
        return add(model, awkward.example())
    except SurgeryError:  # there is no place in it
        return model


@pytest.mark.parametrize("awkward", MODELS, ids=str)
def test_every_awkward_model_is_healthy_in_training_mode_and_stays_as_it_is(awkward):
    model, example = with_batch_norm(awkward).train(), awkward.example()
    before, state = fingerprint(model), random_state()
    found = diagnose(model, example=example, progress=False)
    assert (fingerprint(model), random_state()) == (before, state)
    assert [str(finding) for finding in found.at_least("warning")] == []
    assert str(found)
