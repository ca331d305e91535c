"""Fixed models that were written with the plans of their fixes, and loaded again."""

import torch

from bnkit.checkpoints import load, save
from bnkit.diagnosis.fix import fixed_by


def reloaded(build, fix, folder):
    """Return what a file of the fixed model makes of a fresh one; the state has to be the same."""
    fixed, plans = fixed_by([fix], build())
    loaded = load(build(), save(fixed, folder / "fixed.safetensors", plan=plans))
    expected = fixed.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)
    assert str(loaded) == str(fixed)
    return loaded
