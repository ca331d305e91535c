"""Fully sharded models on two ranks: the verbs work on all of their values, and give plain models.

The oracle is the same network, plain, in one process.
"""

import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import bnkit
from ranks import outcomes_of


def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)
    )
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].running_var.uniform_(0.5, 2)
    return model


def data(rank):
    generator = torch.Generator().manual_seed(rank)
    return [2 * torch.randn(8, 3, 8, 8, generator=generator) + rank for _ in range(4)]


def mesh():
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415  in ranks only

    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(*, inner=False):
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    model = build()
    for layer in (model[0], model[1]) if inner else ():
        fully_shard(layer, mesh=mesh())
    fully_shard(model, mesh=mesh())
    return model


def parallel():
    """Return the network with the columns of its dense layer on several ranks."""
    from torch.distributed.tensor import Replicate  # noqa: PLC0415
    from torch.distributed.tensor.parallel import (  # noqa: PLC0415
        ColwiseParallel,
        parallelize_module,
    )

    return parallelize_module(build(), mesh(), {"4": ColwiseParallel(output_layouts=Replicate())})


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def held(model):
    """Return the parts that this rank holds."""
    return [
        getattr(each, "to_local", lambda each=each: each)().clone()
        for each in (*model.parameters(), *model.buffers())
    ]


SHARDED = {
    "all": sharded,
    "layers": lambda: sharded(inner=True),
    "columns": parallel,
}


def tried(make, rank, folder):
    model, images = make(), data(rank)
    before, kinds = held(model), [type(module) for module in model.modules()]
    found = {
        "recalibrated": state(bnkit.recalibrate(model, images, progress=False)),
        "adapted": state(bnkit.adapt(model, images, progress=False)),
        "findings": findings(bnkit.diagnose(model, images, progress=False)),
        "gap": bnkit.explain_gap(model, images[0]).output_difference,
        "groups": [each["param_names"] for each in bnkit.parameter_groups(model, weight_decay=0.1)],
        "saved": state(bnkit.load(build(), bnkit.save(model, f"{folder}/model.safetensors"))),
    }
    found["untouched"] = all(map(torch.equal, before, held(model)))
    found["untouched"] &= kinds == [type(module) for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    diagnosis = bnkit.diagnose(model, images, optimizer=optimizer, progress=False)
    found["with an optimizer"] = findings(diagnosis)
    model(images[0]).square().mean().backward()  # it trains as before, and holds what it gathered
    optimizer.step()
    bnkit.recalibrate_(model, images, progress=False)
    found["in place"] = {name: each.clone() for name, each in model.named_buffers()}
    found["after a step"] = state(bnkit.recalibrate(model, images, progress=False))
    return found


def findings(diagnosis):
    return [(each.severity, each.rule, list(each.layers)) for each in diagnosis.findings]


def verbs(rank):
    warnings.simplefilter("ignore")  # of torch, on what it shards
    with tempfile.TemporaryDirectory() as own:
        shared = [own]
        dist.broadcast_object_list(shared)
        found = {name: tried(make, rank, shared[0]) for name, make in SHARDED.items()}
        dist.barrier()
    return found


def refused(rank):
    model, found = sharded(), {}
    verbs = {
        "fold": lambda: bnkit.fold(model, data(rank)[0]),
        "add": lambda: bnkit.add(model, data(rank)[0]),
        "a file that cannot be": lambda: bnkit.save(model, f"{__file__}/inside.pt"),
        "another format": lambda: bnkit.save(model, "model.onnx"),
    }
    for name, verb in verbs.items():
        try:
            verb()
        except (OSError, TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    found = outcomes_of(__file__, ["verbs", "refused"], folder, size=2, limit=90)
    assert [outcome.error for each in found.values() for outcome in each] == [""] * 4
    return {name: [outcome.value for outcome in each] for name, each in found.items()}


@pytest.fixture(params=list(SHARDED))
def found(request, on_two_ranks):
    return [each[request.param] for each in on_two_ranks["verbs"]]


def test_recalibration_gives_the_statistics_of_all_ranks_in_a_plain_whole_model(found):
    both = [*data(0), *data(1)]
    for verb, expected in (("recalibrated", bnkit.recalibrate), ("adapted", bnkit.adapt)):
        plain = expected(build(), both, progress=False).state_dict()
        for each in found:
            torch.testing.assert_close(each[verb], dict(plain))


def test_a_file_holds_all_values(found):
    for each in found:
        torch.testing.assert_close(each["saved"], dict(build().state_dict()), rtol=0, atol=0)


def test_each_rank_is_told_what_a_plain_model_is_told_on_its_mini_batches(found):
    for rank, each in enumerate(found):
        gap = bnkit.explain_gap(build(), data(rank)[0]).output_difference
        assert each["gap"] == pytest.approx(gap, rel=1e-5)
        plain = findings(bnkit.diagnose(build(), data(rank), progress=False))
        ranks = ["info", "unsynchronised", ["1"]]
        assert [f for f in each["findings"] if [*f] != ranks] == plain
        assert "weight-decay" in {rule for _, rule, _ in each["with an optimizer"]}


def test_parameter_groups_are_those_of_the_plain_model(found):
    expected = [each["param_names"] for each in bnkit.parameter_groups(build(), weight_decay=0.1)]
    assert [each["groups"] for each in found] == [expected, expected]


def test_the_sharded_model_stays_as_it_was_and_trains_on(found):
    assert [each["untouched"] for each in found] == [True, True]
    first, second = (each["after a step"] for each in found)
    torch.testing.assert_close(first["1.running_mean"], second["1.running_mean"])
    assert not torch.equal(first["0.weight"], build().state_dict()["0.weight"])
    for each in found:
        statistics = {name: each["after a step"][name] for name in each["in place"]}
        torch.testing.assert_close(each["in place"], statistics)


def test_what_is_refused_says_the_way_out(on_two_ranks):
    for texts in on_two_ranks["refused"]:
        for verb in ("fold", "add"):
            assert "is sharded" in texts[verb]
            assert "full_state_dict=True" in texts[verb]
        assert "cannot be written" in texts["a file that cannot be"]
        assert texts["another format"].startswith("ValueError: the suffix of model.onnx")
