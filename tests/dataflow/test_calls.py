import pytest
from torch import nn

from bnkit.dataflow import Call, Dataflow, Value

LAYER, ACTIVATION = nn.Linear(2, 3), nn.ReLU()
X, H, Y, Z = map(Value, range(4))
# x -> fc -> h -> act -> y, and h + y -> z, which leaves; scale() reads a parameter of fc.
CALLS = (
    Call(0, "fc", LAYER, "", (X,), (H,)),
    Call(1, "act", ACTIVATION, "", (H,), (Y,)),
    Call(2, "add", None, "body", (H, Y, H), (Z,), arguments=(H, Y)),
    Call(3, "mul", None, "", (Z,), (), parameters=("fc.weight", "fc.bias", "gain")),
)
FLOW = Dataflow(CALLS, {X: (4, 2), H: (4, 3), Y: (4, 3), Z: (4, 3)}, frozenset([Z]))


def test_values_have_readers_in_order_and_each_once():
    assert [call.index for call in FLOW.readers(H)] == [1, 2]
    assert FLOW.readers(Value(9)) == ()


def test_calls_have_followers():
    assert [[c.index for c in FLOW.following(call)] for call in CALLS] == [[1, 2], [2], [3], []]


def test_calls_of_a_module_are_found_by_its_path_and_functions_are_not():
    assert [call.index for call in FLOW.calls_of("fc")] == [0]
    assert FLOW.calls_of("add") == ()


def test_functions_that_read_parameters_are_found_by_the_path_of_the_module():
    assert [call.index for call in FLOW.calls_reading("fc")] == [3]
    assert [call.index for call in FLOW.calls_reading("")] == [3]
    assert FLOW.calls_reading("act") == ()


def test_a_call_leaves_if_something_it_made_is_an_output():
    assert [FLOW.leaves(call) for call in CALLS] == [False, False, True, False]


@pytest.mark.parametrize(
    ("call", "text", "kind"),
    [
        (CALLS[0], "'fc' (Linear)", "Linear"),
        (CALLS[2], "add() in 'body'", "function"),
        (CALLS[3], "mul()", "function"),
    ],
)
def test_calls_say_what_they_are(call, text, kind):
    assert (str(call), call.kind) == (text, kind)


def test_a_value_is_a_number_of_a_type_of_its_own():
    assert X == 0
    assert type(X) is not int
