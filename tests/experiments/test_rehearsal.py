import itertools
import re
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnkit import ExampleError, SurgeryError
from bnkit.experiments.experiment import experiment_of
from bnkit.experiments.rehearsal import rehearse
from bnkit.experiments.settings import Settings
from bnkit.experiments.training import Training

INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(6) % 3
GOOD = (INPUTS, TARGETS)
CASES = {"training": lambda bad: ([bad], [GOOD]), "test": lambda bad: ([GOOD], [bad])}
each_loader = pytest.mark.parametrize("name", CASES)


def net(*, outputs=3):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def divide_by_zero():
    return 1 / 0


def rehearsed(build=net, data=([GOOD], [GOOD]), **settings):
    chosen = Settings(**settings)
    rehearse(experiment_of(build, lambda: data, chosen), chosen)


def refused(error, build=net, data=([GOOD], [GOOD]), **settings):
    with pytest.raises(error) as raised:
        rehearsed(build, data, **settings)
    return str(raised.value)


def test_a_comparison_that_works_passes_quietly(capfd):
    rehearsed()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("inputs", [(INPUTS,), {"input": INPUTS}], ids=["tuple", "dict"])
def test_inputs_may_be_arguments_of_the_call(inputs):
    rehearsed(data=([(inputs, TARGETS)], [(inputs, TARGETS)]))


def test_a_named_network_is_tried_with_each_activation():
    settings = Settings(activations=["relu", "tnah"])
    with pytest.raises(ValueError, match="unknown activation 'tnah': did you mean 'tanh'"):
        rehearse(experiment_of("mlp", "digits", settings), settings)


@each_loader
def test_empty_loaders_are_refused(name):
    data = ([], [GOOD]) if name == "training" else ([GOOD], [])
    assert refused(ValueError, data=data) == (
        f"the {name} batches of `data` are empty: there is nothing to compare on"
    )


@each_loader
def test_a_batch_that_is_no_pair_is_refused(name):
    assert refused(TypeError, data=CASES[name](INPUTS)) == (
        "a batch is a Tensor: each must be a tuple or list with the inputs first and the targets "
        "last"
    )


@each_loader
def test_inputs_that_do_not_fit_are_refused_by_the_name_of_the_layer(name):
    text = refused(ExampleError, data=CASES[name]((INPUTS[:, :3], TARGETS)))
    assert text.startswith(f"a {name} batch does not fit the network: ")
    assert re.search("'0'.*Linear", text)


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (nn.Flatten(0), "(18,)"),
        (nn.Unflatten(1, (3, 1)), "(6, 3, 1)"),
    ],
)
def test_outputs_that_are_no_scores_are_refused(last, found):
    assert refused(ValueError, lambda: net().append(last)) == (
        f"the network returns {found} for targets of torch.int64 of shape (6,): numbers need "
        f"outputs of their shape, class numbers an integer type, as by targets.long(), and one "
        f"axis more, of scores"
    )


class Pair(nn.Sequential):
    def forward(self, x):
        return super().forward(x), None


def test_outputs_that_are_no_tensor_are_refused():
    assert refused(TypeError, lambda: Pair(*net())) == (
        "the network returns a tuple: it must return a tensor, or have `.logits`"
    )


@each_loader
def test_another_number_of_targets_than_of_rows_is_refused(name):
    assert refused(ValueError, data=CASES[name]((INPUTS, TARGETS[:5]))) == (
        f"a {name} batch has 5 targets and the network returns 6 rows: there must be one target "
        f"for each"
    )


@each_loader
def test_a_target_without_an_output_is_refused_wherever_it_stands(name):
    late = [GOOD, GOOD, (INPUTS, TARGETS + 1)]
    data = (late, [GOOD]) if name == "training" else ([GOOD], late)
    assert refused(ValueError, data=data) == (
        "a target of `data` is 3 and the network has 3 outputs: targets must lie from 0 to 2"
    )


def test_a_network_without_a_place_for_batch_norm_is_refused():
    text = refused(SurgeryError, lambda: nn.Sequential(nn.Linear(4, 3)))
    assert text.startswith("nothing in this model can be normalised")


def test_a_build_that_fails_is_refused():
    text = refused(ValueError, divide_by_zero)
    assert text.startswith("`build` (divide_by_zero) fails: ZeroDivisionError: division by zero")


class Untrainable(nn.Sequential):
    """Fails only where gradients are asked for."""

    def forward(self, x):
        outputs = super().forward(x)
        return outputs.detach() if self.training else outputs


def test_a_training_step_that_fails_is_refused_by_side():
    text = refused(ValueError, lambda: Untrainable(*net()))
    assert text.startswith("a training step of the plain network fails: RuntimeError: ")


def test_a_mini_batch_of_one_fails_on_the_batch_norm_side():
    text = refused(ValueError, data=([(INPUTS[:1], TARGETS[:1])], [GOOD]))
    assert text.startswith("a training step of the batch norm network fails: ValueError: ")


def test_an_optimizer_without_parameters_is_refused():
    text = refused(ValueError, lambda: net().requires_grad_(False))
    assert text.startswith("a training step of the plain network fails: ValueError: ")
    assert "empty parameter list" in text


def test_the_step_is_one_of_the_comparisons_own_training(monkeypatch):
    taken = []
    monkeypatch.setattr("bnkit.experiments.rehearsal.train", lambda *args: taken.append(args))
    rehearsed(loss="sigmoid-cross-entropy", optimizer="adamw", learning_rates=[0.5, 0.1])
    step = Training(0.5, "adamw", "sigmoid-cross-entropy", steps=1, evaluate_every=1)
    trainings = [replace(args[-1], judge=None) for args in taken]
    assert trainings == [step, step]  # both sides


# Pairs that would be none

BUILT = net()
UNSEEDED = torch.Generator()


def drawn_from_a_generator_of_its_own():
    model = net()
    nn.init.normal_(model[0].weight, generator=UNSEEDED)
    return model


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: BUILT, id="the same object: a trial would begin where one ended"),
        pytest.param(drawn_from_a_generator_of_its_own, id="another generator"),
    ],
)
def test_a_network_that_does_not_follow_from_the_seed_is_refused(build):
    assert refused(ValueError, build) == (
        "`build` gives another network when it is called again under the same seed, so the sides "
        "could not begin alike: build a new one at each call, and draw its weights from the global "
        "random generators of torch, Python or NumPy"
    )


def test_batches_that_do_not_follow_from_the_seed_are_refused():
    examples = TensorDataset(torch.arange(24.0).view(6, 4), TARGETS)
    loader = DataLoader(examples, batch_size=3, shuffle=True, generator=torch.Generator())
    assert refused(ValueError, data=(loader, [GOOD])) == (
        "`data` gives other batches when it is called again under the same seed, so the sides "
        "could not see the same: draw from the global random generators of torch, Python or "
        "NumPy, or seed your own in it"
    )


def test_an_iterator_made_outside_is_used_up():
    once = itertools.islice(itertools.cycle([GOOD]), 5)
    assert refused(ValueError, data=(once, [GOOD]), steps=4) == (
        "`data` gives no batches when it is called again: make them again at each call, since "
        "iterators are used up"
    )


def test_what_cannot_be_sent_to_another_process_is_refused():
    lock = threading.Lock()

    def build():
        with lock:
            return net()

    assert refused(ValueError, build).startswith(
        "`build` and `data` run in other processes, and cannot be sent there: TypeError: cannot "
        "pickle '_thread.lock' object"
    )
