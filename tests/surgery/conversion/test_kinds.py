import pytest
from torch import nn

from bnkit.layers.per_step import PerStepBatchNorm1d
from bnkit.surgery.conversion.kinds import (
    KINDS,
    additions_of,
    family_of,
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
    arguments = (2, 4) if kind.family == "group" else (4,)
    layer = kind.classes[rank - 1](*arguments, **OPTIONS.get(kind.name, {}))
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
