import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import users
from bnkit.experiments.data import load
from bnkit.experiments.loaders import named_source, own_source, seed_everything
from bnkit.experiments.settings import Settings

X, Y = users.TRAIN


def source_of(train, test=None, **settings):
    """Return the source of these batches, each a list or a function that makes one."""
    made = [part if callable(part) else (lambda part=part: part) for part in (train, test)]
    return own_source(
        lambda: (made[0](), made[1]() if test is not None else users.cut(users.TEST)),
        Settings(**{"steps": 10, **settings}),
    )


def batch(inputs=X[:4], targets=Y[:4]):
    return (inputs, targets)


# What is found out about people's own data


def test_classes_are_counted_in_training_and_test_targets():
    few, many = [batch(targets=torch.tensor([0, 2, 1, 0]))], [batch(targets=torch.arange(4) + 3)]
    assert source_of(few, few).classes == 3
    assert source_of(few, many).classes == 7
    assert source_of(many, few).classes == 7


@pytest.mark.parametrize(
    ("train", "epochs", "steps"),
    [
        pytest.param(users.cut(users.TRAIN), None, 10, id="steps count alone"),
        pytest.param(users.cut(users.TRAIN), 3, 18, id="a list of 6 batches"),
        pytest.param(
            DataLoader(TensorDataset(X, Y), batch_size=50, drop_last=True), 3, 6, id="loader of 2"
        ),
    ],
)
def test_steps_are_those_asked_for_or_whole_epochs(train, epochs, steps):
    assert source_of(train, epochs=epochs).steps == steps


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_a_loader_without_length_will_do_for_steps_but_not_for_epochs():
    # DataLoader has __len__, which raises TypeError where the data set has none.
    stream = DataLoader(Stream(), batch_size=20)
    assert source_of(stream).steps == 10
    message = "`epochs` is 2, and the training loader has no length: pass `steps`"
    with pytest.raises(ValueError, match=message):
        source_of(stream, epochs=2)


def test_an_endless_iterator_will_do_to_train_on():
    endless = itertools.cycle(users.cut(users.TRAIN))
    assert source_of(endless).steps == 10


def test_of_an_endless_iterable_no_more_is_read_than_a_run_takes():
    taken = []

    class Endless:
        def __iter__(self):
            for number in itertools.count():
                taken.append(number)
                yield batch()

    source_of(Endless())
    assert taken == list(range(10))


def test_inputs_may_be_positional_or_keyword_arguments():
    for inputs in ((X[:4], X[:4]), {"x": X[:4], "name": "a"}, [X[:4], X[:4]]):
        assert source_of([batch(inputs)]).classes == 3


# What they are known by


LONG = users.cut(users.TRAIN, 1)  # 120 batches of one example


def changed(number, inputs=0.0, targets=0):
    batches = list(LONG)
    x, y = batches[number]
    batches[number] = (x + inputs, y + targets)
    return batches


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(changed(0, inputs=1e-6), id="one input"),
        pytest.param(changed(3, targets=1), id="one target"),
        pytest.param(changed(119, inputs=1e-6), id="one input of the last batch"),
        pytest.param(LONG[:-1], id="one batch less"),
        pytest.param(LONG[1::-1] + LONG[2:], id="another order"),
    ],
)
def test_any_change_of_the_data_that_a_run_meets_changes_what_they_are_known_by(other):
    assert source_of(other, steps=200).identity != source_of(LONG, steps=200).identity
    assert source_of(LONG, other).identity != source_of(LONG, LONG).identity


def test_arrays_of_numpy_are_told_apart_in_full():
    # Their repr leaves out the middle of a long one.
    long, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    one, two = (source_of([batch((X[:4], array))]).identity for array in (long, other))
    assert one["examples"] != two["examples"]


def test_the_same_data_are_known_by_the_same():
    assert source_of(LONG).identity == source_of(list(LONG)).identity
    for data in users.SHUFFLING:
        first, again = (own_source(data, Settings(steps=10)).identity for _ in range(2))
        assert first == again


def test_an_edited_loader_is_another():
    one = own_source(lambda: users.loaders(), Settings(steps=10)).identity  # noqa: PLW0108
    other = own_source(users.loaders, Settings(steps=10)).identity
    assert one["examples"] == other["examples"]
    assert one["loaders"] != other["loaders"]


# What is refused

ONE = batch()
PAIR = "it must return (train, test), two iterables of batches"
BATCH = "each must be a tuple or list with the inputs first and the targets last"
INPUTS = (
    "they must be a tensor, a tuple of positional or a dict of keyword arguments of the network"
)
TARGETS = "they must be a tensor with a target for each example"
ITERATOR = (
    "which is used up after one pass: return a list or a DataLoader, which can be iterated again"
)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, f"`data` returned a NoneType: {PAIR}"),
        ([ONE], f"`data` returned a list of 1: {PAIR}"),
        (([ONE], [ONE], [ONE]), f"`data` returned a tuple of 3: {PAIR}"),
        (
            ([], [ONE]),
            "the training batches of `data` are empty: there is nothing to compare on",
        ),
        (([ONE], []), "the test batches of `data` are empty: there is nothing to compare on"),
        (
            (5, [ONE]),
            "reading the training batches of `data` fails: TypeError: 'int' object is not iterable",
        ),
        (
            ([X], [ONE]),
            f"a batch is a Tensor: {BATCH}",
        ),
        (
            ([(X,)], [ONE]),
            f"a batch is a tuple of 1: {BATCH}",
        ),
        (
            ([batch(np.zeros((4, 4)))], [ONE]),
            f"the inputs of a training batch are a ndarray: {INPUTS}",
        ),
        (
            ([ONE], [batch(targets=[0, 1])]),
            f"the targets of a test batch are a list: {TARGETS}",
        ),
        (
            ([batch(targets=torch.tensor(1))], [ONE]),
            f"the targets of a training batch are of no shape: {TARGETS}",
        ),
        (
            ([{"x": X, "y": Y}], [ONE]),
            (
                "a batch is a dict of 'x', 'y': its targets must stand under one of label, labels, "
                "target, targets"
            ),
        ),
        (
            ([ONE, batch(targets=Y[:0])], [ONE]),
            "a training batch holds no examples: leave it out",
        ),
        (
            (iter([ONE] * 9), [ONE]),
            f"the training batches of `data` are an iterator, {ITERATOR}",
        ),
        (
            ([ONE], iter([ONE] * 9)),
            f"the test batches of `data` are an iterator, {ITERATOR}",
        ),
    ],
)
def test_loaders_that_will_not_do_are_refused(found, message):
    with pytest.raises((TypeError, ValueError)) as refusal:
        own_source(lambda: found, Settings(steps=10))
    assert str(refusal.value) == message


def test_errors_of_peoples_own_loaders_are_passed_on_with_their_place():
    def failing():
        yield ONE
        raise KeyError("path")

    message = r"^reading the training batches of `data` fails: KeyError: 'path'"
    with pytest.raises(ValueError, match=message):
        source_of(failing)


# The built-in data


def test_named_data_are_cut_into_mini_batches():
    digits = named_source("digits", Settings(batch_size=100, epochs=2), folder=None)
    assert (digits.classes, digits.steps) == (10, 28)
    loaders = digits.open_loaders()
    inputs, targets = next(iter(loaders.train))
    assert (inputs.shape, targets.shape) == ((100, 1, 8, 8), (100,))
    assert sum(len(targets) for _, targets in loaders.held_out) == len(load("digits").test)


def test_the_cut_decides_the_numbers_and_so_the_identity():
    cuts = [{}, {"batch_size": 61}, {"shuffle": False}]
    names = [named_source("digits", Settings(**cut), folder=None).identity for cut in cuts]
    assert len({str(name) for name in names}) == 3


def test_too_large_mini_batches_are_refused():
    digits = named_source("digits", Settings(batch_size=2000), folder=None)
    with pytest.raises(ValueError, match="`batch_size` is 2000: choose 1 to 1437"):
        digits.open_loaders()


def test_everything_is_seeded_from_which_people_draw():
    drawn = []
    for _ in range(2):
        seed_everything(5)
        drawn.append([data()[0] for data in users.SHUFFLING[:3]])
    for one, other in zip(*drawn, strict=True):
        seed_everything(6)
        first = [targets for _, targets in one]
        seed_everything(6)
        assert torch.equal(torch.cat(first), torch.cat([targets for _, targets in other]))
