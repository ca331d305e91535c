"""A fully sharded model cannot be copied by deepcopy: the verbs gather its parts themselves."""

import copy
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
    plain = copy.deepcopy(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    data = [torch.randn(8, 3, 8, 8) + 1 for _ in range(4)]
    expected = bnkit.recalibrate(plain, data, progress=False)
    assert bnkit.diagnose(model, data, progress=False).batch_norms == 1
    measured = bnkit.recalibrate(model, data, progress=False)
    assert torch.equal(measured[1].running_var, expected[1].running_var)
    bnkit.recalibrate_(model, data, progress=False)
    assert torch.equal(model[1].running_var, expected[1].running_var)
    again = bnkit.load(plain, bnkit.save(model, f"{folder}/a.safetensors"))
    assert torch.equal(again(data[0]), expected.train()(data[0]))
    assert len(bnkit.parameter_groups(model, weight_decay=0.1)) == 2
    try:
        bnkit.fold(model.eval(), data[0])
    except TypeError as error:
        assert "full_state_dict" in str(error)
finally:
    dist.destroy_process_group()
