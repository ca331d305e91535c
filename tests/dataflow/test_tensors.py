from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from bnkit.dataflow.tensors import (
    Search,
    memory_of,
    replace_tensors,
    shape_of,
    tensors_in,
    version_of,
)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass(slots=True)
class Record:
    tensor: Any


class Slotted:
    __slots__ = ("empty", "tensor")

    def __init__(self, tensor):
        self.tensor = tensor


class Derived(Slotted):
    """Has slots of its base, and a dictionary."""


def derived(tensor):
    made = Derived(None)
    made.other = tensor
    return made


A, B = torch.zeros(1), torch.ones(1)
HOLDERS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, [b]],
    "sets": lambda a, b: [{a}, frozenset([b])],
    "dict": lambda a, b: {"a": a, "b": {"c": b}},
    "ordered dict": lambda a, b: OrderedDict(a=a, b=b),
    "named tuple": Pair,
    "dataclass with slots": lambda a, b: Record([a, b]),
    "object": lambda a, b: SimpleNamespace(a=a, more=[b]),
    "slots": lambda a, b: Slotted((a, b)),
    "slots and dictionary": lambda a, b: derived((a, b)),
    "distribution": torch.distributions.Normal,
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_tensors_are_found_in_whatever_holds_them(hold):
    found = tensors_in(hold(A, B))
    assert any(t is A for t in found)
    assert any(t is B for t in found)


def test_each_tensor_is_found_once_in_the_order_of_the_tree():
    assert [t is A for t in tensors_in([A, {"x": B}, A])] == [True, False]


def test_packed_sequences_and_parameters_are_found():
    packed = pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)])
    assert [tuple(t.shape) for t in tensors_in(packed)] == [(3, 3), (2,)]
    assert tensors_in(nn.Parameter(A))


def test_modules_functions_and_text_are_not_looked_into():
    class Callable:
        def __init__(self):
            self.tensor = A

        def __call__(self):
            raise NotImplementedError

    assert tensors_in([nn.Linear(1, 1), Callable(), lambda: A, "text", b"bytes", 3, None]) == []


def test_trees_with_cycles_come_to_an_end():
    tree = [A]
    tree.append(tree)
    assert len(tensors_in(tree)) == 1


def config(size):
    return SimpleNamespace(parts=[SimpleNamespace(name=str(n)) for n in range(size)])


def test_a_large_object_is_looked_through_once():
    search, large = Search(), config(20_000)
    assert search.tensors_in((A, large)) == [A]
    once = search.visits
    assert once > 20_000
    for _ in range(40):
        (found,) = search.tensors_in({"x": B, "config": large})
        assert found is B
    assert search.visits - once == 40  # the dictionaries only


def test_what_a_large_object_held_is_found_again_also_when_it_is_another_tensor():
    search, large = Search(), config(2_000)
    large.parts[700].tensor = A
    assert search.tensors_in([large]) == [A]
    large.parts[700].tensor = B
    (found,) = search.tensors_in([large, 3])
    assert found is B


def test_a_small_object_that_is_filled_later_is_found():
    search, cache = Search(), SimpleNamespace(keys=[])
    assert search.tensors_in([cache]) == []
    cache.keys.append(A)
    assert search.tensors_in([cache]) == [A]


def test_a_large_object_that_leads_to_its_parent_is_found_with_it_alone_too():
    search, parent = Search(), SimpleNamespace(tensor=A, child=config(2_000))
    parent.child.parent = parent
    for tree in (parent, parent.child, parent):
        assert search.tensors_in([tree]) == [A]


def test_large_objects_in_large_objects_keep_the_order():
    search, inner = Search(), config(1_500)
    inner.parts[3].tensor = A
    outer = SimpleNamespace(first=inner, second=config(1_500), last=B)
    for _ in range(2):
        found = search.tensors_in([outer])
        assert sorted(map(id, found)) == sorted(map(id, (A, B)))
    assert search.tensors_in([inner]) == [A]


def test_tensors_are_replaced_in_tuples_lists_and_dicts():
    made = replace_tensors((A, {"x": [B, 3, "text"]}), lambda t: t.item())
    assert made == (0.0, {"x": [1.0, 3, "text"]})


def test_writes_are_counted_where_torch_counts_them():
    x = torch.zeros(3)
    before = version_of(x)
    x[:1].add_(1)
    assert version_of(x) == before + 1
    with torch.inference_mode():
        assert version_of(torch.zeros(1)) == 0


def test_tensors_share_memory_or_do_not():
    x = torch.zeros(2, 3)
    assert memory_of(x) == memory_of(x.t()[1:]) == memory_of(x.data)
    assert memory_of(x) != memory_of(x.clone())


ODD = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "meta": lambda: torch.empty(2, 2, device="meta"),
    "empty": lambda: torch.empty(0),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_tensors_have_a_memory_and_a_shape(make):
    x = make()
    assert isinstance(memory_of(x), int)
    assert shape_of(x) == tuple(x.shape)


def test_tensors_inside_of_vmap_have_a_memory_and_a_shape():
    seen = []
    torch.vmap(lambda x: seen.append((shape_of(x), memory_of(x))) or x)(torch.zeros(2, 3))
    assert seen[0][0] == (3,)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_have_no_shape():
    assert shape_of(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])) == ()
