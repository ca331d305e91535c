"""A subclass passes training=True always: answers depend on what they are batched with."""

import torch
import torch.nn.functional as F
from situations import fed, found, net, rows
from torch import nn

torch.manual_seed(0)


class Always(nn.modules.batchnorm._BatchNorm):
    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps
        )


model = fed(net(norm=Always), rows(30, shift=1.0)).eval()
assert ("training-mode-export", "1") in found(model, rows(shift=1.0))
assert ("training-mode-export", "1") in found(model.train(), rows(shift=1.0))
