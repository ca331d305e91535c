"""Checkpoints have prefixes of wrappers, or lie in an envelope; the commands read them."""

import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

from bnkit.cli.app import app

SOURCE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
"""

values = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).state_dict()
forms = {
    "plain.pt": {"state_dict": values},
    "ddp.pt": {"module." + name: value for name, value in values.items()},
    "compiled.pt": {"_orig_mod." + name: value for name, value in values.items()},
    "nested.pt": {"model": values, "optimizer": {}, "epoch": 3},
    "lightning.ckpt": {"state_dict": values, "epoch": 3},
}
here = Path.cwd()
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "of_trouble_39.py").write_text(SOURCE)
    sys.path.insert(0, folder)
    os.chdir(folder)
    try:
        for name, content in forms.items():
            torch.save(content, name)
            options = ["doctor", "of_trouble_39:build", "--example", "8,6", "--checkpoint", name]
            result = CliRunner().invoke(app, options)
            assert result.exit_code in (0, 1), (name, result.output)  # 2 is an error of the command
    finally:
        os.chdir(here)
        sys.path.remove(folder)
