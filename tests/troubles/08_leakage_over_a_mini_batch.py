"""Contrastive learning on one device: batch norm leaks over the mini-batch, chunks of it do not."""

import torch
from torch import nn

import bnkit

torch.manual_seed(0)

plain = nn.Sequential(nn.BatchNorm1d(6))
ghost = bnkit.convert(plain, "ghost", virtual_batch_size=16)
x = 2 * torch.randn(64, 6) + 1
by_chunk = torch.cat([nn.BatchNorm1d(6)(chunk) for chunk in x.split(16)])
torch.testing.assert_close(ghost(x), by_chunk)
