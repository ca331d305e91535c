import pytest
import torch

from bnkit.cli.arguments import listed, numbers, random_example, settings, texts


def test_what_is_listed_is_parsed_to_the_same():
    assert numbers(float)(listed((0.1, 1e-5, 10.0))) == (0.1, 1e-5, 10.0)
    assert texts(listed(("relu", "tanh"))) == ("relu", "tanh")


def test_spaces_and_empty_parts_do_not_count():
    assert numbers(int)(" 8, 3,,32 ,") == (8, 3, 32)


def test_what_is_no_number_is_refused_with_the_kind_that_is_wanted():
    with pytest.raises(ValueError, match=r"^'8,x': pass integers with commas between them$"):
        numbers(int)("8,x")
    with pytest.raises(ValueError, match=r"^'a': pass numbers with commas between"):
        numbers(float)("a")


def test_an_example_is_random_and_of_the_shape():
    example = random_example(["2,3,5"])
    assert example.shape == (2, 3, 5)
    assert example.std() > 0


def test_examples_are_arguments_by_position_or_by_name():
    ids, images = random_example(["2,300:7", "2,3:float16"])
    assert (ids.min(), ids.max(), images.dtype) == (0, 6, torch.float16)
    named = random_example(["ids=2,5:7", "mask=2,5:bool"])
    assert {name: each.dtype for name, each in named.items()} == {
        "ids": torch.int64,
        "mask": torch.bool,
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2,3:sizes"], "'sizes' is neither a dtype of torch"),
        (["2,3:0"], "'0' is neither a dtype of torch"),
        (["2,3:"], "'' is neither a dtype of torch"),
        (["a=2", "3"], "name all of them, each once, or none"),
        (["a=2", "a=3"], "name all of them, each once, or none"),
    ],
)
def test_an_example_that_is_not_understood_is_answered_with_the_form(texts, message):
    with pytest.raises(ValueError, match=message):
        random_example(texts)


@pytest.mark.parametrize("text", ["num_groups", "=8", ""])
def test_an_option_without_name_or_value_is_refused(text):
    with pytest.raises(ValueError, match=rf"^--option is '{text}': write a name and a value, as "):
        settings([text])


def test_options_are_json_or_else_text():
    found = settings(["r-max=3.5", "guard=false", "momentum=null", "default=all", "a=b=c"])
    plain = {"r_max": 3.5, "guard": False, "momentum": None}
    assert found == {**plain, "default": "all", "a": "b=c"}
