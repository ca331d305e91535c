import json
import math

import pytest
import torch
from torch import nn

from bnkit.diagnosis import Diagnosis, Finding, diagnose
from bnkit.diagnosis.fix import by_edit
from bnkit.surgery.operations import OPERATIONS, Edit


def finding(rule="on-logits", severity="warning", layers=("bn",), **options):
    given = {"measured": {"ratio": 2.0}, "why": "It is so.", "fix": "Do this."}
    return Finding(rule, severity, layers, **{**given, **options})


def diagnosis(*findings, **options):
    return Diagnosis("Net", 3, findings, **options)


def test_the_worst_is_the_severity_of_the_worst_finding():
    assert diagnosis().worst is None
    assert diagnosis(finding(severity="info"), finding(severity="error")).worst == "error"


def test_a_bar_keeps_what_is_as_bad_or_worse():
    findings = [finding(severity=severity) for severity in ("error", "warning", "info")]
    assert diagnosis(*findings).at_least("warning") == tuple(findings[:2])
    with pytest.raises(ValueError, match="`severity` is 'bad': choose from"):
        diagnosis().at_least("bad")


def test_the_table_shows_consequences_below_their_cause_with_all_that_was_found():
    cause = finding(layers=("deep.bn",))
    consequence = finding("unfolded", "error", causes=(cause,))
    other = finding("two-forwards", "error")
    shown = str(diagnosis(consequence, other, cause)).splitlines()
    rules = [line.split()[1:3] for line in shown if line.split()[0] in ("error", "warning")]
    assert rules[0][0] == "two-forwards"
    assert rules[1] == ["on-logits", "deep.bn"]
    assert rules[2] == ["↳", "unfolded"]
    assert shown[-1] == "2 errors, 1 warning in Net with 3 batch norm layers."


def test_the_table_shows_one_row_for_the_same_trouble_in_many_layers():
    text = str(diagnosis(*(finding(layers=(f"bn{number}",)) for number in range(12))))
    assert text.count("on-logits") == 1
    assert "bn0; bn1;" in " ".join(text.split())
    assert "and 4 more" in " ".join(text.split())


def test_the_table_shows_some_of_many_layers_of_one_finding():
    text = str(diagnosis(finding(layers=tuple(f"bn{number}" for number in range(20)))))
    assert "12 more" in text
    assert "bn8" not in text


def test_a_healthy_model_and_what_could_not_be_seen_are_said():
    text = str(diagnosis(not_run=("it fails",)))
    assert text == "Nothing found in Net with 3 batch norm layers.\nNot looked at: it fails"


def test_json_holds_everything_also_numbers_that_json_does_not_know():
    data = diagnosis(finding(measured={"shift": math.inf, "share": 0.5})).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["findings"][0]["measured"] == {"shift": "inf", "share": 0.5}
    assert (data["model"], data["batch_norms"], data["worst"]) == ("Net", 3, "warning")


def test_sarif_has_what_the_standard_requires():
    log = diagnosis(finding(layers=("a.bn",)), finding(severity="info", layers=("",))).to_sarif()
    assert json.loads(json.dumps(log, allow_nan=False)) == log
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert run["tool"]["driver"]["name"] == "bnkit"
    rules = run["tool"]["driver"]["rules"]
    for result, level, place in zip(
        run["results"], ("warning", "note"), ("Net.a.bn", "Net"), strict=True
    ):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "on-logits"
        assert result["level"] == level
        assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == place
        assert "Measured: ratio: 2." in result["message"]["text"]


@pytest.fixture
def done(monkeypatch):
    """Return the names that the operation "note" was given, in order."""
    names = []
    monkeypatch.setitem(OPERATIONS, "note", lambda _model, _layer, *, name: names.append(name))
    return names


def noting(name, **options):
    """Return a fix that notes its name."""
    return by_edit(Edit("", "", name, "", "note", {"name": name}), **options)


def test_fixing_all_fixes_causes_and_leaves_their_consequences(done):
    cause = finding(automatic_fix=noting("cause"))
    consequence = finding("unfolded", automatic_fix=noting("consequence"), causes=(cause,))
    model = nn.BatchNorm1d(2)
    fixed = diagnosis(cause, consequence, finding()).fixed(model)
    assert (done, fixed is model) == (["cause"], False)
    with pytest.raises(ValueError, match="severity 'warning' or worse can be fixed automatically"):
        diagnosis(finding(), finding(severity="info", automatic_fix=noting(""))).fixed(model)


def test_what_was_measured_is_written_before_other_fixes_change_it(done):
    worse = finding(severity="error", automatic_fix=noting("structure"))
    measured = finding(automatic_fix=noting("statistics", measures=True))
    _, plans = diagnosis(worse, measured).fixed_with_plans(nn.Identity())
    assert done == ["statistics", "structure"]
    assert [plan.edits[0].action for plan in plans] == done


def test_the_old_names_warn_and_work(done):
    found = diagnosis(finding(automatic_fix=noting("a")))
    with pytest.warns(DeprecationWarning, match=r"`Diagnosis\.mended` is now .*`Diagnosis\.fixed`"):
        assert isinstance(found.mended(nn.Identity()), nn.Identity)
    with pytest.warns(DeprecationWarning, match=r"called `Diagnosis\.fixed_with_plans`"):
        _, (plan,) = found.mended_with_plans(nn.Identity())
    with pytest.warns(DeprecationWarning, match=r"called `Finding\.automatic_fix`"):
        assert found.findings[0].mend is found.findings[0].automatic_fix
    assert (done, plan.edits[0].action) == (["a", "a"], "a")


def test_fixing_stops_at_a_bar(done):
    worth_knowing = finding(severity="info", automatic_fix=noting("info"))
    consequence = finding(causes=(worth_knowing,), automatic_fix=noting("bad"))
    found = diagnosis(consequence, worth_knowing)
    found.fixed(nn.Identity())
    found.fixed(nn.Identity(), severity="info")
    assert done == ["bad", "info"]


def test_fixes_of_one_layer_agree_on_what_the_model_computes():
    # The bias goes, out of the statistics that are measured anew: both are of the same layer.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    batches = [torch.randn(16, 4) + 3 for _ in range(3)]
    found = diagnose(model, batches, progress=False, skip=["unfolded"])
    fixed = found.fixed(model, severity="info")
    by_statistics = found.fixed(model)
    assert fixed[0].bias is None
    torch.testing.assert_close(fixed(batches[0]), by_statistics(batches[0]))


def test_a_layer_that_another_fix_took_away_is_left_alone():
    # Folded into the layer before it, whose bias is one that no batch norm cancels any more.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    batches = [torch.randn(16, 4) for _ in range(3)]
    of_statistics = ["never-updated", "stale-statistics", "train-eval-gap"]
    found = diagnose(model, batches, progress=False, skip=of_statistics)
    assert {"on-logits", "cancelled-bias"} <= {each.rule for each in found.findings}
    fixed = found.fixed(model, severity="info").eval()
    assert fixed[0].bias is not None
    torch.testing.assert_close(fixed(batches[0]), model.eval()(batches[0]))


def test_a_real_diagnosis_prints_and_fixes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(16, 4) for _ in range(3)]
    found = diagnose(model, batches, progress=False)
    (bias,) = (f for f in found.findings if f.rule == "cancelled-bias")
    assert "cancelled-bias" in str(found)
    assert bias.automatic_fix(model)[0].bias is None


def test_sarif_explains_each_rule_in_text_and_in_markdown():
    (run,) = diagnosis(finding()).to_sarif()["runs"]
    for rule in run["tool"]["driver"]["rules"]:
        assert rule["fullDescription"]["text"] in rule["help"]["text"]
        assert "**How to fix it.**" in rule["help"]["markdown"]
