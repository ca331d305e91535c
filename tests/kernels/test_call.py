"""The call of a kernel: what torch is told of it is what it is."""

from bnkit.kernels.call import SCHEMA, Call, flat


def test_the_schema_of_the_operators_names_the_values_of_a_call_in_their_order():
    assert [value.split()[1] for value in SCHEMA.split(", ")] == list(Call._fields)


def test_a_flat_function_takes_the_values_of_a_call_after_its_other_arguments():
    call = Call("x", "mean", "variance", "weight", "bias", "residual", 1e-5, "relu", True, "cpu")
    assert flat(lambda *arguments: arguments)("dy", *call) == ("dy", call)
    assert call.ending == {"eps": 1e-5, "activation": "relu", "residual": "residual"}
