"""A fully sharded model on two ranks: what works, what is refused, and the way out named."""

import tempfile

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bnkit
from ranks import outcomes_of

ADVICE = "full_state_dict=True"


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )


def data(rank):
    generator = torch.Generator().manual_seed(rank)
    return [2 * torch.randn(8, 3, 8, 8, generator=generator) + rank for _ in range(4)]


def sharded():
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  in ranks only
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model = build()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def refusals(rank):
    model, found = sharded(), {}
    with tempfile.TemporaryDirectory() as folder:
        verbs = {
            "diagnose": lambda: bnkit.diagnose(model, data(rank), progress=False),
            "recalibrate": lambda: bnkit.recalibrate(model, data(rank)),
            "recalibrate_": lambda: bnkit.recalibrate_(model, data(rank)),
            "fold": lambda: bnkit.fold(model, data(rank)[0]),
            "save": lambda: bnkit.save(model, f"{folder}/model.safetensors"),
        }
        for name, verb in verbs.items():
            try:
                verb()
            except TypeError as error:
                found[name] = str(error)
    return found


def groups(_rank):
    first, second = bnkit.parameter_groups(sharded(), weight_decay=0.1)
    return first["param_names"], second["param_names"]


def way_out(rank):
    from torch.distributed.checkpoint.state_dict import (  # noqa: PLC0415
        StateDictOptions,
        get_model_state_dict,
    )

    model, plain = sharded(), build()
    values = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    plain.load_state_dict(values or build().state_dict())  # only the first rank gets them
    measured = bnkit.recalibrate(plain, data(rank), progress=False)
    model.load_state_dict(dict(measured.named_buffers()), strict=False)
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return outcomes_of(__file__, ["refusals", "groups", "way_out"], folder, size=2, limit=60)


def test_verbs_that_need_a_copy_say_the_way_out(on_two_ranks):
    for outcome in on_two_ranks["refusals"]:
        assert outcome.error == ""
        assert sorted(outcome.value) == ["diagnose", "fold", "recalibrate", "recalibrate_", "save"]
        assert all("is sharded" in text and ADVICE in text for text in outcome.value.values())


def test_parameter_groups_of_a_sharded_model_are_those_of_the_plain_one(on_two_ranks):
    expected = [each["param_names"] for each in bnkit.parameter_groups(build(), weight_decay=0.1)]
    assert [[*outcome.value] for outcome in on_two_ranks["groups"]] == [expected, expected]


def test_the_way_out_gives_the_statistics_of_all_ranks(on_two_ranks):
    both = bnkit.recalibrate(build(), [*data(0), *data(1)], progress=False)
    for outcome in on_two_ranks["way_out"]:
        assert outcome.error == ""
        torch.testing.assert_close(outcome.value, dict(both.named_buffers()))
