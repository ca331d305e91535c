"""Advice runs: over all sick models, the code of a fix runs, and it leaves no trouble behind."""

import copy
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import bnkit
from bnkit.diagnosis.diagnosing import diagnose
from bnkit.diagnosis.rules.table import RULES
from diagnosis.rules.test_state import SICK as OF_STATE
from diagnosis.rules.test_structure import SICK as OF_STRUCTURE

# What a person fills in, where the code of a fix leaves it open.
FILLED = {
    "weight_decay=...": "weight_decay=1e-4",
    "domains=[...]": "domains=['one', 'other']",
    "bnkit.domain(model, name)": "bnkit.domain(model, 'one')",
    "path in [...]": "path in [layer for finding in diagnosis for layer in finding.layers]",
    "bnkit.mask(real)": "bnkit.mask(torch.ones(8, 10, dtype=torch.bool))",
}
CALL = re.compile(r"(?:model = )?(?:bnkit|diagnosis)\.\w+\(")


@dataclass(frozen=True)
class Case:
    """A sick model of one of the files, with what it is diagnosed on."""

    sick: Any

    def __str__(self):
        return str(self.sick)

    def model(self):
        torch.manual_seed(0)
        return self.sick.build()

    def batches(self):
        return list(self.sick.batches() or ())


CASES = [Case(sick) for sick in (*OF_STRUCTURE, *OF_STATE)]


def codes(text):
    """Return the calls of bnkit in the words of a fix, each up to the parenthesis that ends it."""
    found = []
    for match in CALL.finditer(text):
        end, depth = match.end(), 1
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        found.append(text[match.start() : end])
    return found


def filled(code):
    for open_, given in FILLED.items():
        code = code.replace(open_, given)
    return code


def family(rule):
    """Return the rule and those whose findings follow from it."""
    return {rule} | {each.slug for each in RULES if rule in each.follows}


def seen(model, batches):
    return diagnose(model, batches, progress=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_code_of_a_fix_runs_on_the_diagnosed_model(case):
    model, batches = case.model(), case.batches()
    diagnosis = seen(copy.deepcopy(model), batches or None)
    texts = {finding.fix for finding in diagnosis.at_least("warning")}
    for code in {code for text in texts for code in codes(text)}:
        if not batches:
            assert "batches" in code  # there are none to run it with
            continue
        example = batches[0][0] if isinstance(batches[0], list | tuple) else batches[0]
        names = {
            "bnkit": bnkit,
            "torch": torch,
            "model": copy.deepcopy(model),
            "diagnosis": diagnosis,
            "batches": batches,
            "batch": batches[0],
            "example": example,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(filled(code), names)
        assert isinstance(names["model"], nn.Module)


FIXED = [case for case in CASES if case.sick.fixed and case.sick.severity != "info"]


@pytest.mark.parametrize("case", FIXED, ids=str)
def test_after_the_fix_no_finding_of_its_family_is_left_at_warning(case):
    model, batches = case.model(), case.batches()
    fixed = seen(model, batches or None).fixed(model)
    left = seen(fixed, batches or None).at_least("warning")
    assert [str(each) for each in left if each.rule in family(case.sick.rule)] == []
