import pytest
from torch import nn

from bnkit.benchmarking import Case, Measurement, measure
from bnkit.benchmarking import measuring as module
from bnkit.benchmarking.measuring import check
from bnkit.kernels import memory
from bnkit.layers import BatchNorm2d

TRAINING = ["torch", "torch again", "bnkit", "copy", "bnkit, fresh memory"]
INFERENCE = ["inference, torch", "inference, bnkit"]
SMALL = Case((4, 3, 5, 5))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (3, 4, 5, 6), (2, 4, 3, 5, 6)], ids=str)
def test_every_program_is_timed_on_every_rank_and_layout(shape, last):
    found = measure(Case(shape, channels_last=last), seconds=0.0)
    assert sorted(found.seconds) == sorted(TRAINING + INFERENCE)
    assert all(seconds > 0 for seconds in found.seconds.values())


def test_the_limit_of_idle_memory_is_given_back():
    before = memory.idle_limit()
    measure(SMALL, seconds=0.0)
    assert memory.idle_limit() == before


def test_nothing_is_timed_before_it_is_known_to_be_right(monkeypatch):
    def wrong(*_arguments):
        raise ArithmeticError("wrong")

    def timed(*_arguments, **_options):
        pytest.fail("it was timed")

    monkeypatch.setattr(module, "check", wrong)
    monkeypatch.setattr(module, "interleaved", timed)
    with pytest.raises(ArithmeticError):
        measure(SMALL)


class Wrong(BatchNorm2d):
    """A batch norm whose output is wrong in the third digit, and its gradient with it."""

    def forward(self, input):
        return 1.001 * super().forward(input)


def right():
    return nn.Sequential(BatchNorm2d(3, activation="relu"))


def test_the_right_result_passes_and_a_wrong_one_does_not():
    x, dy = SMALL.tensors()
    check(right(), x, dy)
    with pytest.raises(ArithmeticError, match=r"\d+ values differ from float64 on torch.Size"):
        check(nn.Sequential(Wrong(3, activation="relu")), x, dy)


def test_a_wrong_gradient_alone_does_not_pass():
    x, dy = SMALL.tensors()
    layers = right()
    layers[0].register_full_backward_hook(lambda _, gradients, __: (2 * gradients[0],))
    with pytest.raises(ArithmeticError):
        check(layers, x, dy)


def measurement(shape, **seconds):
    names = {name.replace("_", " "): value for name, value in seconds.items()}
    return Measurement(Case(shape), names)


def test_a_ratio_says_how_many_times_longer_the_first_took():
    found = measurement((6, 4), torch=3.0, bnkit=1.5, copy=0.5)
    assert found.ratio("torch") == 2.0
    assert found.ratio("torch", "copy") == 6.0
    assert found.ratio("torch.compile") is None
    assert found.passes == 6.0  # a copy makes two


@pytest.mark.parametrize(
    ("shape", "last", "passes"),
    [
        pytest.param((32, 64, 56, 56), False, 5, id="one channel of 0.4 MB"),
        pytest.param((32, 3, 512, 512), False, 8, id="one channel of 34 MB"),
        pytest.param((32, 64, 56, 56), True, 8, id="32 channels of 12 MB together"),
        pytest.param((32, 2048, 7, 7), True, 5, id="32 channels of 0.2 MB together"),
        pytest.param((60, 100), False, 5, id="all of it in the cache"),
        pytest.param((10**6, 32), False, 8, id="rows of channels: 32 lie together"),
    ],
)
def test_the_least_number_of_passes_depends_on_what_the_cache_holds(shape, last, passes):
    assert Measurement(Case(shape, channels_last=last), {}).minimal_passes == passes
