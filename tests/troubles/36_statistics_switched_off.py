"""track_running_stats=False: an answer depends on its mini-batch in eval mode."""

import torch
from situations import rows
from torch import nn

import bnkit

torch.manual_seed(0)

data = rows(shift=2.0)
model = nn.Sequential(
    nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)
)
model.eval()
diagnosis = bnkit.diagnose(model, data, progress=False)
assert ("training-mode-export", ("1",)) in [
    (f.rule, f.layers) for f in diagnosis.at_least("warning")
]
fixed = diagnosis.fixed(model)
torch.testing.assert_close(fixed(data[0])[:1], fixed(data[0][:1]), rtol=1e-5, atol=1e-6)
