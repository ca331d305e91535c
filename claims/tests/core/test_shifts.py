import pytest
import torch
from torch import nn

from bnkit_claims.core.gradients import gradient_at, parameters_of
from bnkit_claims.core.shifts import gradient_shift


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
