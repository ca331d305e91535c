import pytest
import torch
from torch import nn

from bnkit.layers.per_step import PerStepBatchNorm1d
from bnkit.layers.renorm import Ramp
from bnkit.surgery.conversion.kinds import (
    KINDS,
    additions_of,
    as_plain_data,
    family_of,
    from_plain_data,
    name_and_rank,
)

OPTIONS = {"accumulated": {"micro_batches": 2}, "domains": {"domains": ("a", "b")}}
LAYERS = [
    pytest.param(kind, rank, id=f"{kind.name}, {rank}d")
    for kind in KINDS.values()
    for rank in (1, 2, 3)
]


@pytest.mark.parametrize(("kind", "rank"), LAYERS)
def test_every_class_is_known_by_its_kind_and_rank(kind, rank):
    for classes in (kind.classes, *([kind.finished] if kind.finished else [])):
        arguments = (2, 4) if kind.family == "group" else (4,)
        layer = classes[rank - 1](*arguments, **OPTIONS.get(kind.name, {}))
        assert name_and_rank(layer) == (kind.name, None if kind.family == "group" else rank)
        assert family_of(layer) == kind.family
        assert additions_of(layer) == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_option_is_one_of_the_constructor_and_stays_as_an_attribute(kind):
    given = OPTIONS.get(kind.name, {})
    kind.check(given)
    layer = kind.classes[0](*((2, 4) if kind.family == "group" else (4,)), **given)
    assert kind.options_of(layer).keys() == set(kind.options)
    assert all(hasattr(layer, name) for name in kind.carried)


def test_batch_norms_for_inputs_of_any_rank_are_known():
    class AnyRank(nn.modules.batchnorm._BatchNorm):
        def _check_input_dim(self, input):
            pass

    assert name_and_rank(AnyRank(3)) == ("without a rank", None)
    assert additions_of(AnyRank(3)) == []
    assert additions_of(PerStepBatchNorm1d(3, max_steps=2)) != []


def test_options_go_to_plain_data_and_back():
    options = {"domains": ("day", "night"), "r_max": Ramp(1, 3, 0, 9), "default": "all"}
    assert from_plain_data(as_plain_data(options)) == {**options, "domains": ["day", "night"]}
    plain = as_plain_data({"r_max": torch.sqrt})
    with pytest.raises(ValueError, match=r"`r_max` was '.*sqrt', a function, which no file holds"):
        from_plain_data(plain)
