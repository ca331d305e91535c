"""A group of one rank, in which models can be wrapped in DistributedDataParallel."""

import pytest
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture
def one_rank(tmp_path):
    """Return what wraps a model in DistributedDataParallel while the test runs."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield DistributedDataParallel
    dist.destroy_process_group()
