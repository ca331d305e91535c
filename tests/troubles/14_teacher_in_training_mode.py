"""model.train() reaches the teacher inside the student's wrapper: its statistics drift."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


def net(width=8, norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(6, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def rows(number=8, *, shift=0.0, scale=1.0, count=64):
    return [scale * torch.randn(count, 6) + shift for _ in range(number)]


def fed(model, batches):
    for batch in batches:
        model(batch)
    return model


def found(model, batches=None, severity="warning", **options):
    diagnosis = bnkit.diagnose(model, batches, progress=False, **options)
    return {(each.rule, layer) for each in diagnosis.at_least(severity) for layer in each.layers}


class Distilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher, self.student = net(32), net(8)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x) - target


model = Distilled()
fed(model.teacher, rows(60))
optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
bad = found(model.train(), rows(shift=2.0, scale=2.0), optimizer=optimizer)
assert ("frozen-but-batch-statistics", "teacher.1") in bad
assert not any(rule == "missing-from-optimizer" for rule, _ in bad)
