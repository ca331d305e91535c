import functools
import re
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bnkit.batches import NoBatchesError, calls_of, each_of, number_of, refuse_iterator

X, Y = torch.zeros(4, 3), torch.arange(4)
MASK = torch.ones(4)
Pair = namedtuple("Pair", "inputs target")  # noqa: PYI024  as collated by torch
PACKED = pack_sequence([X, X[:2]])


class Net(nn.Module):
    def forward(self, x, mask=None, *, scale=1.0):
        raise NotImplementedError


class Open(nn.Module):
    def forward(self, **features):
        raise NotImplementedError


class Labelled(nn.Module):
    def forward(self, x, labels=None):
        raise NotImplementedError


def only(batch, *, model=None, **options):
    (call,) = calls_of(model or Net(), [batch], **options)
    return call


def keys(call):
    """Replace tensors by their names, so that calls can be compared."""
    names = {id(X): "x", id(MASK): "mask", id(Y): "y", id(PACKED): "packed"}
    args, kwargs = call
    return tuple(names[id(a)] for a in args), {key: names[id(v)] for key, v in kwargs.items()}


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, (("x",), {})),
        ({"x": X, "mask": MASK}, ((), {"x": "x", "mask": "mask"})),
        (UserDict(x=X), ((), {"x": "x"})),
        ([X, Y], (("x",), {})),
        ((X, MASK, Y), (("x",), {})),
        (Pair(X, Y), (("x",), {})),
        ([X], (("x",), {})),
        (((X, MASK), Y), (("x", "mask"), {})),
        ([[X, MASK], Y], (("x", "mask"), {})),
        (({"x": X, "mask": MASK}, Y), ((), {"x": "x", "mask": "mask"})),
        (({"x": X},), ((), {"x": "x"})),
        (PACKED, (("packed",), {})),
        ((PACKED, Y), (("packed",), {})),
    ],
    ids=[
        "a tensor is the argument",
        "a dict holds keyword arguments",
        "so does another mapping",
        "a list of two or more has inputs first",
        "so has a tuple of three",
        "and a named tuple",
        "a list of one is its item",
        "inputs in a tuple are positional arguments",
        "torch's default collation makes lists of tuples",
        "inputs in a dict are keyword arguments",
        "a dict in a tuple of one",
        "a packed sequence is a named tuple, but one input",
        "a packed sequence with targets",
    ],
)
def test_every_form_of_a_mini_batch_is_read(batch, expected):
    assert keys(only(batch)) == expected


@pytest.mark.parametrize("name", ["label", "labels", "target", "targets"])
def test_labels_that_forward_does_not_take_are_left_out(name):
    assert keys(only({"x": X, name: Y})) == ((), {"x": "x"})


def test_labels_that_forward_takes_are_passed():
    assert keys(only({"x": X, "labels": Y}, model=Labelled())) == ((), {"x": "x", "labels": "y"})


def test_a_forward_that_takes_all_keywords_gets_all():
    assert keys(only({"x": X, "mask": MASK, "labels": Y}, model=Open())) == (
        (),
        {"x": "x", "mask": "mask", "labels": "y"},
    )


def test_inputs_overrides_all_forms():
    def inputs(batch):
        return (batch["image"],), {"mask": batch["valid"]}

    call = only({"image": X, "valid": MASK, "id": "a"}, inputs=inputs)
    assert keys(call) == (("x",), {"mask": "mask"})


@pytest.mark.parametrize(
    ("batches", "count"),
    [
        (X, 1),
        ({"x": X}, 1),
        ([X, X], 2),
        ((X, X, X), 3),
        ((x for x in (X, X)), 2),
        (DataLoader(TensorDataset(X, Y), batch_size=2), 2),
    ],
    ids=["a tensor", "a dict", "a list", "a tuple", "a generator", "a loader"],
)
def test_batches_are_any_iterable_or_one_mini_batch(batches, count):
    assert len(list(calls_of(Net(), batches))) == count


def test_mini_batches_are_read_one_after_the_other():
    # A loader may be endless, or larger than memory.
    def endless():
        while True:
            yield X

    calls = calls_of(Net(), endless())
    assert keys(next(calls)) == keys(next(calls)) == (("x",), {})


class Once(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    ("batches", "number"),
    [([X, X], 2), (X, 1), (iter([X]), None), (DataLoader(Once()), None), (5, None)],
    ids=["a list", "a tensor", "an iterator", "a loader without a length", "no batches"],
)
def test_the_number_of_mini_batches_is_known_where_batches_say_it(batches, number):
    assert number_of(batches) == number


# Bad input


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"gave no mini-batch: the list is empty; pass at least one \(drop_last=True of"),
        (iter([]), r"gave no mini-batch: it is a list_iterator, which is used up after one pass"),
        (DataLoader(TensorDataset(X), 8, drop_last=True), r"the DataLoader is empty; .*drop_last"),
    ],
    ids=["empty", "used up", "the only mini-batch is dropped"],
)
def test_no_mini_batch_is_an_error(batches, message):
    with pytest.raises(NoBatchesError, match=message):
        list(calls_of(Net(), batches))


@pytest.mark.parametrize("batches", ["digits", 5, None, Net()], ids=["text", "int", "None", "net"])
def test_what_is_no_iterable_of_mini_batches_is_refused(batches):
    message = rf"`batches` is a {type(batches).__name__}: pass a DataLoader or another iterable"
    with pytest.raises(TypeError, match=message):
        each_of(batches)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("x", r"^mini-batch 2 of `batches` is a str: pass a tensor, a dict .* by `inputs=`"),
        ((), r"^mini-batch 2 of `batches` is an empty tuple: leave it out"),
        ((3, X), r"^the first item of mini-batch 2 of `batches`, its inputs, is a int: pass a"),
        (
            {"x": X, "id": 3, "labels": Y, "weight": X},
            r"has 'id', 'weight', which .* Net does not take: it takes 'mask', 'scale', 'x'\.",
        ),
    ],
    ids=["text", "nothing", "no inputs first", "unknown keys"],
)
def test_a_mini_batch_that_cannot_be_read_is_named(batch, message):
    with pytest.raises(TypeError, match=message):
        list(calls_of(Net(), [X, batch]))


@pytest.mark.parametrize("result", [X, (X, X), ([X], {})], ids=["tensor", "two tensors", "list"])
def test_inputs_must_return_args_and_kwargs(result):
    message = re.escape(f"`inputs` returned a {type(result).__name__} for mini-batch 1")
    with pytest.raises(TypeError, match=message + r".*must return \(args, kwargs\)"):
        only(X, inputs=lambda _: result)


def test_an_error_of_the_loader_passes_through_as_it_is():
    error = OSError("disk")

    def broken():
        yield X
        raise error

    with pytest.raises(OSError, match="disk") as caught:
        list(calls_of(Net(), broken()))
    assert caught.value is error


def test_an_iterator_is_refused_where_several_passes_are_made():
    message = r"`batches` is a generator, which is used up after one pass, and it is read twice: pa"
    with pytest.raises(ValueError, match=message):
        refuse_iterator((x for x in [X]), "it is read twice")
    refuse_iterator([X], "it is read twice")


# Detection: a list of images of several sizes, and a list of as many targets

IMAGES = [torch.zeros(3, side, 5) for side in (4, 5, 6)]
BOXES = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1)} for _ in IMAGES]


class Detector(nn.Module):
    def forward(self, images, targets=None):
        raise NotImplementedError


class OfOneList(nn.Module):
    def forward(self, images):
        raise NotImplementedError


class Sized(nn.Module):
    def forward(self, images, sizes=None):
        raise NotImplementedError


class OfManyImages(nn.Module):
    def forward(self, *images):
        raise NotImplementedError


def same(given, expected):
    """Return whether two nests hold the same objects."""
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(map(same, given, expected))
    return given is expected


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", [list, tuple], ids=["lists", "tuples"])
@pytest.mark.parametrize(
    ("model", "arguments"),
    [(Detector(), 2), (OfOneList(), 1), (Sized(), 1)],
    ids=["images and targets", "images", "something else"],
)
def test_a_list_of_samples_is_one_argument_and_the_targets_are_another(
    count, kind, model, arguments
):
    images, targets = kind(IMAGES[:count]), kind(BOXES[:count])
    args, kwargs = only((images, targets), model=model)
    assert same(args, (images, targets)[:arguments])
    assert kwargs == {}


def test_targets_of_detection_may_be_tensors_and_stand_before_other_items():
    boxes = [torch.zeros(number, 4) for number in range(3)]
    args, _ = only((IMAGES, boxes, torch.arange(3)), model=Detector())
    assert same(args, (IMAGES, boxes))


def test_a_list_that_forward_takes_as_one_argument_only_is_one():
    args, _ = only((IMAGES, torch.arange(3)), model=OfOneList())
    assert same(args, (IMAGES,))


def test_several_inputs_with_several_targets_stay_several_arguments():
    assert keys(only(([X, MASK], [Y, Y]))) == (("x", "mask"), {})
    assert keys(only(([X, MASK], [Y, Y]), model=OfManyImages())) == (("x", "mask"), {})


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (X, r"^mini-batch 1 of `batches` is a Tensor, with which the forward of Two cannot be"),
        (([X, X, X], Y), r"its inputs, is a list of 3, with which the forward of Two cannot be"),
    ],
    ids=["too little", "too much"],
)
def test_inputs_that_forward_cannot_take_are_an_error_that_names_inputs(batch, words):
    class Two(nn.Module):
        def forward(self, x, mask):
            raise NotImplementedError

    with pytest.raises(TypeError, match=words + r".*it takes \(x, mask\).*inputs=lambda batch"):
        only(batch, model=Two())


def test_a_forward_that_is_wrapped_or_hooked_may_take_what_it_does_not_say():
    class Filled(nn.Module):
        def forward(self, x, mask):
            raise NotImplementedError

    hooked = Filled()
    hooked.register_forward_pre_hook(lambda _, args: (*args, MASK))
    assert keys(only(X, model=hooked)) == (("x",), {})
    wrapped, inner = Filled(), Filled().forward
    wrapped.forward = functools.wraps(inner)(lambda x: inner(x, MASK))
    assert keys(only(X, model=wrapped)) == (("x",), {})
