import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit.recalibration import adapt, adapted, plan_adaptation, recalibrate
from cases import seeded
from interruptions import at_every_line
from zoo.checks import fingerprint

SOURCE = torch.randn(200, 3, generator=seeded(0), dtype=torch.float64)
TARGET = SOURCE[:24] * 2 + 5


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    ).double()
    return recalibrate(model, SOURCE.split(50)).eval()


def blended(layer, x, prior):
    share = prior / (prior + len(x))
    mean = share * layer.running_mean + (1 - share) * x.mean(0)
    return mean, share * layer.running_var + (1 - share) * x.var(0)


@pytest.mark.parametrize("estimator", ["batch_statistics", "layer_by_layer"])
@pytest.mark.parametrize("prior", [0, 1, 16, 1000.0])
def test_statistics_are_blended_by_pseudo_counts(prior, estimator):
    # Schneider et al. 2020: each layer sees inputs that were normalised by blended statistics.
    model = net()
    after = adapt(model, TARGET, prior=prior, estimator=estimator)
    x = model[0](TARGET).detach()
    mean, variance = blended(model[1], x, prior)
    torch.testing.assert_close(after[1].running_mean, mean)
    torch.testing.assert_close(after[1].running_var, variance)
    x = F.batch_norm(x, mean, variance, model[1].weight, model[1].bias).relu()
    mean, variance = blended(model[5], model[4](x).detach(), prior)
    torch.testing.assert_close(after[5].running_mean, mean)
    torch.testing.assert_close(after[5].running_var, variance)


def test_rows_of_all_mini_batches_count():
    model, whole = net(), adapt(net(), TARGET, prior=8, estimator="layer_by_layer")
    parts = adapt(model, TARGET.split(7), prior=8, estimator="layer_by_layer")
    torch.testing.assert_close(parts[5].running_mean, whole[5].running_mean)
    torch.testing.assert_close(parts[5].running_var, whole[5].running_var)


def test_each_mini_batch_is_normalised_by_its_own_blend():
    model, parts = net(), TARGET.split(10)
    after = adapt(model, parts, prior=8)
    outputs = []
    for part in parts:
        x = model[0](part).detach()
        x = F.batch_norm(x, *blended(model[1], x, 8), model[1].weight, model[1].bias)
        outputs.append(model[4](x.relu()).detach())
    mean, variance = blended(model[5], torch.cat(outputs), 8)
    torch.testing.assert_close(after[5].running_mean, mean)
    torch.testing.assert_close(after[5].running_var, variance)


def test_an_infinite_prior_keeps_the_source():
    model = net()
    after = adapt(model, TARGET, prior=math.inf)
    assert torch.equal(after[5].running_mean, model[5].running_mean)
    assert torch.equal(after[5].running_var, model[5].running_var)


def test_the_rows_of_images_count_and_not_their_pixels():
    layer, x = nn.BatchNorm2d(1), torch.full((2, 1, 8, 8), 4.0)
    assert adapt(layer, x, prior=2).running_mean == 2


def test_one_row_moves_the_mean_and_shrinks_the_variance():
    layer = adapt(nn.BatchNorm1d(1), torch.tensor([[4.0]]), prior=3)
    assert (layer.running_mean.item(), layer.running_var.item()) == (1.0, 0.75)


def test_the_number_of_mini_batches_stays():
    assert adapt(net(), TARGET)[1].num_batches_tracked == 4


def test_the_model_stays_as_it_is():
    model = net()
    before = fingerprint(model)
    adapt(model, TARGET)
    assert fingerprint(model) == before


def test_the_plan_says_how_far_the_target_is_and_applies():
    model = net()
    plan = plan_adaptation(model, TARGET, prior=4)
    assert [shift.layer for shift in plan.layers] == ["1", "5"]
    assert plan.layers[0].mean_shift > 1
    expected = adapt(model, TARGET, prior=4)
    assert torch.equal(plan.apply(model)(TARGET), expected(TARGET))


class BlockError(Exception):
    """Raised inside blocks, and nowhere else."""


@pytest.mark.parametrize("error", [None, BlockError])
def test_a_block_predicts_with_adapted_statistics_and_gives_the_old_ones_back(error):
    model = net()
    before = [(key, v.clone(), v.data_ptr()) for key, v in model.state_dict().items()]
    expected, plain = adapt(model, TARGET, prior=4)(TARGET), model(TARGET)

    def block():
        with adapted(model, TARGET, prior=4) as record:
            assert [shift.layer for shift in record.layers] == ["1", "5"]
            assert torch.equal(model(TARGET), expected)
            model.train()(TARGET)  # which moves the statistics further
            if error:
                raise error

    with pytest.raises(error) if error else nullcontext():
        block()
    assert torch.equal(model.eval()(TARGET), plain)
    for key, value, place in before:
        assert torch.equal(model.state_dict()[key], value)
        assert model.state_dict()[key].data_ptr() == place


def test_the_old_statistics_come_back_also_if_ctrl_c_comes_in_between():
    model = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(3))).eval()

    def act():
        with adapted(model, torch.randn(8, 2, generator=seeded(0)) + 3):
            pass

    places = []
    for place in at_every_line(("recalibration/recalibration.py", "recalibration/shifts.py"), act):
        places.append(place)
        assert all(bool((layer.running_mean == 0).all()) for layer in model), place
        assert all(bool((layer.running_var == 1).all()) for layer in model), place
    assert "_write" in {function for function, _ in places}


def test_an_error_in_the_batches_leaves_the_model_as_it_was():
    def broken():
        yield TARGET
        raise BlockError

    model = net()
    before = fingerprint(model)
    with pytest.raises(BlockError), adapted(model, broken()):
        pass
    assert fingerprint(model) == before


@pytest.mark.parametrize("prior", [-1, math.nan, "16", True, None])
def test_a_prior_that_is_no_number_of_rows_is_refused(prior):
    with pytest.raises(ValueError, match=rf"`prior` is {prior!r}: pass the number of rows that"):
        adapt(net(), TARGET, prior=prior)


def test_one_value_per_channel_without_a_prior_is_refused():
    message = r"^mini-batch 1 gives layer '1' 1 value per channel"
    with pytest.raises(ValueError, match=message):
        adapt(net(), TARGET[:1], prior=0)
