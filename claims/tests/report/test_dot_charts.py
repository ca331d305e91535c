from bnkit_claims.core.charts import Dot
from bnkit_claims.report.dot_charts import LINE, Rows, places


def test_every_name_has_as_many_lines_so_that_each_stands_at_the_middle_of_its_row():
    rows = Rows(
        [Dot("relu", "plain", 1.0), Dot("statistics measured without any dropout at all", "", 2.0)]
    )
    assert rows.names["relu"].split("\n") == [" ", "relu", " "]
    assert rows.names["statistics measured without any dropout at all"].count("\n") == 2
    assert rows.offset == -LINE


def test_a_row_has_room_for_the_lines_of_its_name():
    long = "a name that needs many lines of twenty characters to be written down in full"
    assert Rows([Dot(long, "plain", 1.0)]).height >= LINE * 5
    assert Rows([Dot("short", "plain", 1.0)]).height < LINE * 5


def test_rows_are_as_high_as_their_dots_need():
    one = [Dot("relu", "plain", 1.0), Dot("tanh", "plain", 1.0)]
    three = [*one, Dot("tanh", "batch norm", 1.0), Dot("tanh", "ghost", 1.0)]
    assert Rows(three).height > Rows(one).height


def test_a_dot_without_a_value_keeps_its_place():
    dots = [Dot("relu", "plain", None), Dot("relu", "batch norm", 1.0)]
    assert places(dots) == [0, 1]
