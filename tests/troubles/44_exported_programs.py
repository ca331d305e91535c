"""A program was exported while batch norm was in training mode."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
example = (torch.randn(4, 3, 8, 8),)
for training, severity in ((True, "error"), (False, "info")):
    program = torch.export.export(model.train(training), example)
    (finding,) = bnkit.diagnosis.diagnose_export(program)
    assert (finding.severity, finding.layers) == (severity, ("1",))
