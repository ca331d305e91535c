import json

import pytest

from bnkit.train_eval_gap import Gap, LayerGap

NAN, INF = float("nan"), float("inf")


def layer(name="bn", own=0.0, chance=0.0, **others):
    numbers = dict.fromkeys(("mean_shift", "difference"), 0.5)
    numbers |= {"least_variance_ratio": 0.25, "largest_variance_ratio": 4.0}
    return LayerGap(name, "BatchNorm1d", own_difference=own, chance=chance, **(numbers | others))


def gap(*layers, threshold=0.1, **others):
    return Gap(32, tuple(layers), output_difference=0.75, threshold=threshold, **others)


def test_a_layer_diverges_over_the_threshold_and_over_twice_what_chance_makes():
    layers = [
        layer("under the threshold", 0.1),
        layer("over it", 0.11),
        layer("chance", 0.4, chance=0.2),
        layer("more than chance", 0.41, chance=0.2),
        layer("no number", NAN),
        layer("infinite", INF, chance=0.2),
        layer("one row, of which chance makes anything", 3.0, chance=INF),
    ]
    diverging = ["over it", "more than chance", "no number", "infinite"]
    assert [found.layer for found in gap(*layers).diverging] == diverging


def test_it_reads_as_a_table_and_a_sentence():
    text = """\
 layer         kind          mean off by   variance ratio   own difference   by chance   so far
────────────────────────────────────────────────────────────────────────────────────────────────
 (the model)   BatchNorm1d   0.5 std       0.25 to 4        0.3              0.01        0.5
 bn            BatchNorm1d   0.5 std       0.25 to 4        0                0           0.5

 left out   why
────────────────────────
 old        it is frozen

On this mini-batch of 32, in eval mode the output differs from the training-mode output by 75% \
(relative). They first diverge at the model, whose running statistics are not those of this \
mini-batch: bnkit.recalibrate measures them anew."""
    found = gap(layer("", 0.3, chance=0.01), layer(), left_out={"old": "it is frozen"})
    assert [line.rstrip("─") for line in str(found).splitlines()] == [
        line.rstrip("─") for line in text.splitlines()
    ]


def test_only_the_first_layers_are_named():
    found = str(gap(*(layer(f"bn{i}", 0.3) for i in range(5))))
    assert "They first diverge at 'bn0', 'bn1', 'bn2' and 2 more, whose" in found


def test_it_says_so_where_none_diverges():
    words = "No batch norm diverges by itself, by more than 0.2 and more than chance."
    assert str(gap(layer(), threshold=0.2)).endswith(words)


def test_it_is_plain_data():
    data = gap(layer(own=NAN, difference=INF), left_out={"old": "why"}).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["layers"][0]["own_difference"] is data["layers"][0]["difference"] is None
    assert (data["diverging"], data["left_out"]) == (["bn"], {"old": "why"})


def test_old_names_work_and_warn():
    found = gap(layer(own=0.3))
    with pytest.warns(DeprecationWarning, match=r"`Gap\.parting` is now called `Gap\.diverging`"):
        assert found.parting == found.diverging
    with pytest.warns(DeprecationWarning, match=r"is now called `LayerGap\.diverges`"):
        assert found.layers[0].parts(0.1)
    assert found.to_json()["parting"] == ["bn"]


@pytest.mark.parametrize(
    ("share", "words"), [(0.741, "74%"), (0.0034, "0.34%"), (INF, "inf%"), (12.0, "1200%")]
)
def test_the_output_differs_by_so_many_percent(share, words):
    found = Gap(32, (layer(),), output_difference=share, threshold=0.1)
    assert f"from the training-mode output by {words} (relative)." in str(found)
