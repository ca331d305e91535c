import copy

import pytest
import torch
from torch import nn

from bnkit.surgery import Plan, SurgeryError
from bnkit.surgery.verification import run, verify
from surgery.sameness import verified
from zoo.catalogue import vectors
from zoo.checks import fingerprint, random_state


def small(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).to(dtype)


def off_by(error, model, layer=-1):
    """Return a copy whose layer gives (1 + error) times as much."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other[layer].parameters():
            parameter.mul_(1 + error)
    return other


def test_a_proof_holds_both_errors():
    model = small()
    proof = verified(model, off_by(2**-20, model), vectors(), exactly=copy.deepcopy)
    assert proof.error == pytest.approx(2**-20, rel=0.2)
    assert 0 < proof.absolute < 1e-5
    assert proof.error_in_float64 == 0.0
    assert str(proof) == (
        f"Same function: error 0.0e+00 in float64, {proof.error:.1e} in the model's dtype "
        f"(largest difference {proof.absolute:.1e})."
    )


def test_nothing_is_touched():
    model = small().train()
    other, x = off_by(0, model), vectors()
    before, shown, state = [fingerprint(m) for m in (model, other)], x.clone(), random_state()
    verified(model, other, x)
    assert [fingerprint(m) for m in (model, other)] == before
    assert torch.equal(x, shown)
    assert random_state() == state


BOUNDS = [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)]


@pytest.mark.parametrize(("dtype", "bound"), BOUNDS, ids=str)
def test_the_error_in_the_models_own_dtype_is_bounded(dtype, bound):
    model, x = small(dtype), vectors().to(dtype)
    # In bfloat16 a factor rounds to the next of numbers that are 2^-8 apart.
    verified(model, off_by(bound / 4, model), x, exactly=copy.deepcopy)
    with pytest.raises(SurgeryError, match=rf"and at most {bound:.2g} is allowed"):
        verified(model, off_by(4 * bound, model), x, exactly=copy.deepcopy)


def test_a_tolerance_of_ones_own_bounds_the_error_in_the_models_dtype():
    model = small()
    verified(model, off_by(0.1, model), vectors(), exactly=copy.deepcopy, tolerance=0.2)
    message = (
        r"^the changed model does not compute the same: from layer '2' on the error "
        r"max\|a − b\| / max\|a\| is 0\.1, and at most 0\.05 is allowed; leave the layer out by "
        r"`where`, or allow more by `tolerance`$"
    )
    with pytest.raises(SurgeryError, match=message):
        verified(model, off_by(0.1, model), vectors(), exactly=copy.deepcopy, tolerance=0.05)


def test_what_rounding_in_float64_does_not_explain_is_refused():
    model = small()
    message = (
        r"^the changed model does not compute the same: from layer '0' on the error .* is .*e-0\d "
        r"in float64, and at most 1e-10 is allowed; leave the layer out by `where`$"
    )
    with pytest.raises(SurgeryError, match=message):
        verified(model, off_by(2**-20, model, layer=0), vectors(), tolerance=1.0)


def test_the_change_is_made_again_in_float64_where_the_values_are_not_rounded():
    model, x = small(), vectors()

    def third(model):
        """Multiply by 1/3 in one layer, by 3 in the other."""
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight.div_(3)
            other[0].bias.div_(3)
            other[2].weight.mul_(3)
        return other

    assert verified(model, third(model), x, exactly=third).error_in_float64 < 1e-15
    with pytest.raises(SurgeryError, match="in float64"):
        verified(model, third(model), x)


class Casting(nn.Module):
    """Computes in another dtype than that of its parameters."""

    def __init__(self, dtype):
        super().__init__()
        self.fc, self.dtype = nn.Linear(4, 3), dtype

    def forward(self, x):
        return (self.fc(x).to(self.dtype) * 1).to(x.dtype)


class Demanding(Casting):
    """Takes one dtype only."""

    def forward(self, x):
        if x.dtype is not self.dtype:
            raise AssertionError("wrong dtype")
        return self.fc(x)


WHY_NOT = {
    Casting: "on the way the model rounds to float32",
    Demanding: "the model fails in it (AssertionError: wrong dtype)",
}


@pytest.mark.parametrize(("kind", "why"), WHY_NOT.items())
def test_a_proof_in_the_models_dtype_only_says_why(kind, why):
    torch.manual_seed(0)
    model = kind(torch.float32)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.mul_(1 + 2**-20)
    proof = verified(model, other, vectors())
    assert (proof.error_in_float64, proof.why_not_in_float64) == (None, why)
    assert "in the model's dtype only (largest difference" in str(proof)
    assert str(proof).endswith(f" Not checked in float64: {why}.")
    plan = Plan((), (), proof)
    assert plan.to_json()["proof"]["why_not_in_float64"] == why


def test_a_proof_that_ran_out_of_memory_in_float64_says_so():
    class Large(nn.Linear):
        def forward(self, x):
            if x.dtype is torch.float64:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nof 1")
            return super().forward(x)

    proof = verify(Large(4, 3), nn.Module.eval, vectors())
    assert proof.why_not_in_float64 == (
        "memory is too short for it, and a smaller example needs less"
    )


def test_where_any_part_computes_in_half_precision_the_bound_is_that_of_it():
    torch.manual_seed(0)
    model = Casting(torch.bfloat16)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.mul_(1 + 2e-3)  # one step of rounding in some of its outputs
        other.fc.bias.mul_(1 + 2e-3)
    assert 1e-4 < verified(model, other, vectors(), exactly=copy.deepcopy).error < 1e-2


def test_random_numbers_are_the_same_on_both_sides():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    assert verified(Noisy(), Noisy(), vectors()).error == 0


def test_a_changed_model_that_fails_is_refused():
    message = (
        r"^the changed model fails where the original does not: RuntimeError: .*; leave layers "
        r"out by `where`$"
    )
    with pytest.raises(SurgeryError, match=message):
        verified(nn.Linear(4, 2), nn.Linear(3, 2), vectors())


def test_a_model_that_gives_no_numbers_cannot_be_proven():
    class Silent(nn.Module):
        def forward(self, _):
            return "nothing"

    message = r"^the model \(Silent\) returns no numbers on the example, so nothing shows that"
    with pytest.raises(SurgeryError, match=message):
        verified(Silent(), Silent(), vectors())


def test_more_or_fewer_outputs_are_refused():
    class Twice(nn.Module):
        def forward(self, x):
            return x, x + 0

    with pytest.raises(SurgeryError, match=r"in its output the error .* is inf"):
        verified(nn.Identity(), Twice(), vectors())


SINGLE, DOUBLE = torch.float32, torch.float64


class Seen(nn.Module):
    """Notes what it and its copies run on; row 11 of the examples goes through `rare` alone."""

    def __init__(self, between=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.common, self.rare = nn.Linear(4, 3), nn.Linear(4, 3)
        self.between = between

    def forward(self, x):
        SEEN.append((x.dtype, len(x)))
        x = self.between(x)
        return torch.where(x[:, :1] > 5, self.rare(x), self.common(x))


SEEN = []


def sixteen():
    SEEN.clear()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    x[11, 0] = 6.0
    return x


def scale(error):
    def change(model):
        with torch.no_grad():
            model.rare.weight.mul_(1 + error)

    return change


def test_of_many_samples_an_eighth_runs_in_float64():
    model, x = Seen(), sixteen()
    verify(model, nn.Module.eval, x)
    assert SEEN == [(SINGLE, 16)] * 2 + [(DOUBLE, 2)] * 2


def test_of_two_samples_the_one_that_is_further_off_runs_in_float64():
    model, x = Seen(), sixteen()[10:12]
    verify(model, nn.Module.eval, x)
    assert SEEN == [(SINGLE, 2)] * 2 + [(DOUBLE, 1)] * 2
    with pytest.raises(SurgeryError, match="in float64, and at most 1e-10 is allowed"):
        verify(model, scale(1e-6), x)


def test_what_the_original_gave_when_it_was_traced_is_not_computed_again():
    model, x = Seen(), sixteen()
    before = run(model, x)
    verify(model, nn.Module.eval, x, before=before)
    assert SEEN == [(SINGLE, 16)] * 2 + [(DOUBLE, 2)] * 2


def test_a_difference_in_a_single_sample_is_found_in_float64():
    with pytest.raises(SurgeryError, match="in float64, and at most 1e-10 is allowed"):
        verify(Seen(), scale(1e-6), sixteen())


def test_a_model_in_which_samples_meet_runs_in_float64_on_all_of_them():
    verify(Seen(lambda x: x - x.mean(0)), nn.Module.eval, sixteen())
    assert SEEN[-2:] == [(DOUBLE, 16)] * 2


def test_a_model_that_changes_when_it_runs_begins_as_it_is_each_time():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x * self.count

    assert verify(Counting(), nn.Module.eval, sixteen()).error_in_float64 == 0


def test_a_change_that_fails_says_so_itself():
    def refuse(_):
        raise SurgeryError("not this one")

    with pytest.raises(SurgeryError, match=r"^not this one$"):
        verify(Seen(), refuse, sixteen())
