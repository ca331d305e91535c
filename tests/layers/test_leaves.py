"""torch.fx takes what bnkit makes for one call each, and torch.jit compiles what is deployed."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.fx import symbolic_trace

import bnkit

IMAGES = 2 * torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
BATCHES = [IMAGES, IMAGES * 2]


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4), nn.Tanh(), nn.Linear(4, 2)
    )


def normalised():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(72, 2))
    model(IMAGES)
    return model.eval()


MADE = {
    "add": lambda: bnkit.add(plain(), IMAGES),
    "add after": lambda: bnkit.add(plain(), IMAGES, placement="after_activation"),
    "insert": lambda: bnkit.insert(plain(), BATCHES),
    "remove": lambda: bnkit.remove(normalised(), IMAGES),
    "standardize": lambda: bnkit.standardize(normalised(), BATCHES),
    "accelerate": lambda: bnkit.accelerate(normalised(), IMAGES),
    "convert": lambda: bnkit.convert(normalised(), "frozen", IMAGES),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_verbs_return_can_be_traced(make):
    model = make().eval()
    traced = symbolic_trace(model)
    assert torch.equal(traced(IMAGES), model(IMAGES))
    assert traced.state_dict().keys() == model.state_dict().keys()
    copied = copy.deepcopy(traced)
    assert torch.equal(copied(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", ["accelerate", "convert", "remove", "add"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*reduce_range")
def test_it_can_be_prepared_for_quantisation(name):
    model = MADE[name]().eval()
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(), (IMAGES,))
    torch.testing.assert_close(prepared(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_standardised_model_of_several_arguments_says_what_to_trace():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    pairs = [((IMAGES, IMAGES),)]
    model = bnkit.standardize(Two(), pairs, inputs=lambda b: (b[0], {}), argument="x")
    for take in (symbolic_trace, torch.jit.script):
        with pytest.raises(TypeError, match="of one argument, and Two takes 2: give them its `mod"):
            take(model)


class ByName(nn.Module):
    """Normalises what is called `x`."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(torch.relu(self.conv(x))).mean((2, 3)))


def pixels():
    """A model of integers, whose weights are of float64."""
    model = ByName().double().eval()
    return bnkit.standardize(model, [(20 * batch).clamp(0, 255).byte() for batch in BATCHES])


DEPLOYED = {
    "remove": MADE["remove"],
    "remove by name": lambda: bnkit.remove(ByName().eval(), IMAGES),
    "standardize": MADE["standardize"],
    "standardize by name": lambda: bnkit.standardize(ByName().eval(), BATCHES),
    "standardize pixels": pixels,
}


@pytest.mark.parametrize("name", DEPLOYED)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_deployed_can_be_scripted(name):
    model = DEPLOYED[name]().eval()
    x = (20 * IMAGES).clamp(0, 255).byte() if name.endswith("pixels") else IMAGES
    expected, kinds = model(x), [type(module) for module in model.modules()]
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    torch.testing.assert_close(scripted(x), expected)
    assert scripted.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in model.modules()] == kinds
    if name.startswith("standardize"):
        with pytest.raises(torch.jit.Error, match=r"of shape \[8, 1, 8, 8\] must have 3 features"):
            scripted(x[:, :1])
