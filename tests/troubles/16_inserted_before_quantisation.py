"""Batch norm is inserted into a deployed network, which is then trained for quantisation."""

import warnings

import torch
import torch.ao.quantization as Q
from torch import nn

import bnkit

torch.manual_seed(0)

warnings.simplefilter("ignore")
deployed = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
).eval()
data = [torch.randn(16, 3, 8, 8) for _ in range(4)]
model = bnkit.insert(deployed, data)
torch.testing.assert_close(model.eval()(data[0]), deployed(data[0]), rtol=1e-5, atol=1e-5)
model.train().qconfig = Q.get_default_qat_qconfig("fbgemm")
convs = [each for each in Q.prepare_qat(model).modules() if isinstance(each, nn.Conv2d)]
assert convs
assert all(hasattr(each, "weight_fake_quant") for each in convs)
