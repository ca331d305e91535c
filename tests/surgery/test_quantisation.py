"""Torch's eager quantisation sees the pairs of layers and batch norms that bnkit makes."""

import pytest
import torch
from torch import nn

import bnkit

ao = torch.ao.quantization
pytestmark = pytest.mark.filterwarnings("ignore")  # eager quantisation is deprecated
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def inserted():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(ao.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        ao.DeQuantStub(),
    ).eval()
    return bnkit.insert(model, [IMAGES, 2 * IMAGES])


def test_inserted_batch_norms_are_trained_with_fake_quantisation_and_converted():
    model = inserted().train()
    model.qconfig = ao.get_default_qat_qconfig("fbgemm")
    prepared = ao.prepare_qat(model)
    assert [type(prepared[i]).__name__ for i in (1, 3, 7)] == ["ConvBn2d", "ConvBn2d", "LinearBn1d"]
    assert all(hasattr(prepared[i], "weight_fake_quant") for i in (1, 3, 7, 9))
    torch.testing.assert_close(prepared[1].bn.running_var, model[1].batchnorm.running_var)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    prepared(IMAGES).square().mean().backward()
    optimizer.step()
    expected = prepared.eval()(IMAGES)
    int8 = ao.convert(prepared)
    assert "Quantized" in type(int8[1]).__name__ or int8[1].__module__.startswith("torch.ao.nn.q")
    assert (int8(IMAGES) - expected).abs().max() < 0.1 * expected.abs().max()


def test_static_quantisation_is_refused_until_they_are_folded():
    model = inserted().eval()
    model.qconfig = ao.get_default_qconfig("fbgemm")
    prepared = ao.prepare(model)
    prepared(IMAGES)
    with pytest.raises(ValueError, match=r"a NormalizedConv2d owns a batch norm.*fold it first"):
        ao.convert(prepared)
    folded = bnkit.fold(inserted().eval(), IMAGES)
    folded.qconfig = ao.get_default_qconfig("fbgemm")
    prepared = ao.prepare(folded)
    prepared(IMAGES)
    assert ao.convert(prepared)(IMAGES).shape == (8, 4)


def test_what_normalises_its_input_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    twin = bnkit.add(Net(), IMAGES, placement="after_activation").train()
    twin.qconfig = ao.get_default_qat_qconfig("fbgemm")
    with pytest.raises(ValueError, match=r"a NormalizedConv2d owns a batch norm"):
        ao.prepare_qat(twin)
