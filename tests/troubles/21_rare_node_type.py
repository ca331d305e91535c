"""A rare node type has one row in a mini-batch that is large: training stops there."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)


class Types(nn.Module):
    def __init__(self):
        super().__init__()
        self.paper = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.author = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, paper, author):
        return self.paper(paper).mean(0) + self.author(author).mean(0)


batches = [{"paper": torch.randn(30, 5), "author": torch.randn(n, 5)} for n in (12, 18, 1, 16)]
diagnosis = bnkit.diagnose(Types(), batches, progress=False)
(finding,) = diagnosis.at_least("error")
assert (finding.rule, finding.layers) == ("one-value-per-channel", ("author.1",))
assert finding.measured["mini-batch"] == 3
assert "author.1" in diagnosis.not_run[0]
