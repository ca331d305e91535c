import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit_claims.core.gradients import distance, gradient_at, gradient_shift, norm, parameters_of


def test_loss_and_gradient_are_those_of_a_training_step_and_the_model_stays_as_it_is():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randn(8, 3), torch.randint(2, (8,))
    loss, gradient = gradient_at(model, parameters_of(model), batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = F.cross_entropy(model.train()(batch[0]), batch[1])
    expected.backward()
    assert loss == pytest.approx(expected.item())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad)


def test_distance_and_norm_are_those_of_all_tensors_in_a_row():
    torch.manual_seed(0)
    left, right = ({"a": torch.randn(3, 2), "b": torch.randn(4)} for _ in range(2))
    flat = [torch.cat([v.flatten() for v in each.values()]) for each in (left, right)]
    assert norm(left) == pytest.approx(flat[0].norm().item())
    assert distance(left, right) == pytest.approx((flat[0] - flat[1]).norm().item())


def test_the_gradients_shift_is_that_of_an_update_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    own = parameters_of(model)
    _, before = gradient_at(model, own, batch)
    with torch.no_grad():
        for name in ("0.weight", "0.bias"):
            model.get_parameter(name).sub_(0.5 * before[name])
    _, after = gradient_at(model, parameters_of(model), batch)
    model.load_state_dict(own)
    old, new = (torch.cat([g["2.weight"].flatten(), g["2.bias"]]) for g in (before, after))
    shift = gradient_shift(model, batch, 0.5)
    assert shift["distance"] == pytest.approx((new - old).norm().item())
    assert shift["relative"] == pytest.approx(((new - old).norm() / old.norm()).item())
    assert shift["cosine"] == pytest.approx(torch.cosine_similarity(old, new, dim=0).item())
