import pytest
import torch
from torch import nn

from bnkit.benchmarking import CASES, QUICK, Case
from bnkit.benchmarking.cases import _MAPS

SMALL = [Case((6, 4)), Case((3, 4, 5)), Case((3, 4, 5, 6)), Case((2, 4, 3, 5, 6))]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_mini_batch_has_the_shape_and_the_layout(case, last):
    x, dy = Case(case.shape, channels_last=last).tensors()
    for tensor in (x, dy):
        assert tensor.shape == case.shape
        assert tensor.dtype is torch.float32
        assert tensor.movedim(1, -1).is_contiguous() == (last or len(case.shape) == 2)
        assert tensor.is_contiguous() == (not last or len(case.shape) == 2)
    assert x.requires_grad
    assert x.is_leaf
    assert not dy.requires_grad
    assert not torch.equal(x, dy)


def test_both_layouts_hold_the_same_values_each_time():
    first, last = (Case((3, 4, 5, 6), channels_last=last) for last in (False, True))
    for ours, theirs in zip(first.tensors(), last.tensors(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(first.tensors()[0], first.tensors()[0])


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_torchs_layers_take_the_mini_batch(case):
    layers = case.torch_layers()
    assert [type(layer) for layer in layers][1:] == [nn.ReLU]
    assert layers(case.tensors()[0]).shape == case.shape


def test_the_size_is_that_of_the_tensor():
    case = Case((3, 4, 5, 6))
    assert case.bytes == case.tensors()[0].nbytes


def test_cases_are_told_apart_by_what_they_print():
    assert len(set(map(str, CASES))) == len(CASES)
    assert str(Case((8, 4, 2, 2), channels_last=True)) == "8x4x2x2, channels last"


def test_the_issues_shapes_are_all_there_in_both_layouts():
    assert len(_MAPS) == 12  # of ResNet-50, MobileNetV2 and DenseNet
    images = [case for case in CASES if len(case.shape) == 4]
    assert [case.channels_last for case in images] == [False] * 12 + [True] * 12
    others = [case.shape for case in CASES if len(case.shape) != 4]
    assert others == [(60, 100), (256, 1024), (32, 64, 1000), (4, 32, 16, 56, 56)]


def test_the_quick_cases_are_the_small_ones():
    assert set(QUICK) < set(CASES)
    assert max(case.bytes for case in QUICK) < 16 * 2**20
    assert {case.channels_last for case in QUICK} == {False, True}
