"""An int8 model keeps a batch norm that says training=True and never uses the mini-batch."""

import warnings

import torch
import torch.ao.quantization as Q
from torch import nn

import bnkit

torch.manual_seed(0)

warnings.simplefilter("ignore")
model = nn.Sequential(
    Q.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), Q.DeQuantStub()
)
data = [torch.randn(16, 3, 8, 8) for _ in range(20)]
for batch in data:
    model(batch)
model.eval().qconfig = Q.get_default_qconfig("fbgemm")
Q.prepare(model, inplace=True)
for batch in data:
    model(batch)
before = bnkit.recalibrate(model, data)
assert before.qconfig is not None
Q.convert(model, inplace=True)
errors = bnkit.diagnose(model, example=data[0], progress=False).at_least("error")
assert errors == ()
