import pytest

from bnkit.names import one_of, unknown_name


def test_an_unknown_name_like_no_other_gets_the_list_alone():
    assert unknown_name("fruit", "xyzzy", ["pear", "apple"]) == (
        "unknown fruit 'xyzzy': choose from apple, pear"
    )


def test_an_unknown_name_is_answered_with_the_near_ones():
    with pytest.raises(ValueError, match="unknown fruit 'aple': did you mean 'apple'"):
        one_of({"pear": 1, "apple": 2}, "aple", "fruit")
