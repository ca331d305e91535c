import json

from bnkit_claims.core.charts import Axis, Dot, Dots
from bnkit_claims.core.checked_claims import Checked, CheckedClaim
from bnkit_claims.core.claim import Source
from bnkit_claims.core.evidence import Beside, Evidence, Part
from bnkit_claims.report import write_claims

CHART = Dots("Twice as fast", Axis("times"), (Dot("relu", "steps", 2.0),))


def claim(name, **found):
    return CheckedClaim(
        name=name,
        statement="Batch norm is <faster>.",
        sources=(Source("A paper", "it is"),),
        measurement="Steps are counted.",
        criteria="Above 1.",
        settings={"steps": 10},
        command=f"bnkit claims {name}",
        **found,
    )


FOUND = Evidence(
    headline="It takes 2.0 times the steps.",
    parts=(Part("fewer steps", "2.0 (1.5 to 2.5) times", True),),
    beside=(Beside("<seconds>", "1.2 times"),),
    notes=("Its source says ten.",),
    figures=(CHART,),
    details=({"seed": 0, "r": 2.0},),
)


def test_every_claim_has_a_page_with_its_chart_and_the_list_links_to_it(tmp_path):
    checked = Checked({"torch": "2"}, (claim("faster", evidence=FOUND), claim("lost", reason="no")))
    index = write_claims(checked, tmp_path).read_text()
    assert 'href="claims/faster.html"' in index
    assert "1 holds, 1 failed" in index
    page = (tmp_path / "claims" / "faster.html").read_text()
    assert "Batch norm is &lt;faster&gt;." in page
    assert "bnkit claims faster" in page
    assert 'id="faster-1-0"' in page
    assert page.partition("<script")[0].count("<svg") == 1
    assert "It takes 2.0 times the steps." in index
    shown = ["It takes 2.0 times", "Its source says ten.", "fewer steps", "(1.5 to 2.5)"]
    assert all(text in page for text in [*shown, "&lt;seconds&gt;", "beside"])
    assert (tmp_path / "charts" / "faster-1.png").stat().st_size > 1000
    assert Checked.from_json(json.loads((tmp_path / "claims.json").read_text())) == checked


def test_pages_open_without_a_network(tmp_path):
    write_claims(Checked({}, (claim("faster", evidence=FOUND),)), tmp_path)
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        assert "src=" not in text
        assert 'href="http' not in text
