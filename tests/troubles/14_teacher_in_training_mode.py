"""model.train() reaches the teacher inside the student's wrapper: its statistics drift."""

import torch
from situations import fed, found, net, rows
from torch import nn

torch.manual_seed(0)


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
