import os
import platform
import re
from pathlib import Path

import torch

from bnkit.experiments.environment import environment, usable_cores


def test_versions_machine_and_date_are_named():
    found = environment()
    assert found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert all(found.values())


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    assert environment()["cores"] == "3"


def test_other_systems_than_linux_are_described_too(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(platform, "processor", lambda: "")

    def absent(*_arguments, **_options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert (environment()["cores"], environment()["processor"]) == ("1", "unknown")
