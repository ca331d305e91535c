"""Mended models that were written with the plans of their mends, and loaded again."""

import torch

from bnkit.checkpoints import load, save
from bnkit.diagnosis.mend import mended_by


def reloaded(build, mend, folder):
    """Return what a file of the mended model makes of a fresh one; the state has to be the same."""
    mended, plans = mended_by([mend], build())
    loaded = load(build(), save(mended, folder / "mended.safetensors", plan=plans))
    expected = mended.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)
    assert str(loaded) == str(mended)
    return loaded
