"""`randomised`: batch norms in a state that no formula meets by accident."""

import torch

STATE = ("running_mean", "running_var", "weight", "bias")


def randomised(model):
    """Give every batch norm random statistics and parameters, and return the model in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            with torch.no_grad():
                for name in STATE:
                    tensor = getattr(module, name, None)
                    if tensor is not None:
                        values = torch.randn(tensor.shape, generator=generator)
                        tensor.copy_(values.abs() + 0.5 if name == "running_var" else values)
    return model.eval()
