"""A fully sharded model cannot be copied or saved: a way out is named."""

import tempfile

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import bnkit

torch.manual_seed(0)

folder = tempfile.mkdtemp()
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
try:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    data = [torch.randn(8, 3, 8, 8) + 1 for _ in range(4)]
    for verb in (bnkit.diagnose, bnkit.recalibrate, bnkit.recalibrate_):
        try:
            verb(model, data, progress=False)
        except TypeError as error:
            assert "full_state_dict" in str(error)
    try:
        bnkit.save(model, f"{folder}/a.safetensors")
    except TypeError as error:
        assert "full_state_dict" in str(error)
    assert len(bnkit.parameter_groups(model, weight_decay=0.1)) == 2
finally:
    dist.destroy_process_group()
