import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnkit_claims.core.gradients import distance, gradient_at, norm, parameters_of


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
