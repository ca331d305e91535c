import json

import pytest

from bnkit_claims.core.cases import Repetition, in_turn
from bnkit_claims.core.checked_claims import ClaimsInterrupted, check_claims
from bnkit_claims.core.claim import Claim, claim_named
from bnkit_claims.core.evidence import Evidence, Part
from doubling import Doubling, broken, double


def here(folder, **how):
    return Repetition(folder, **{"jobs": 1, "progress": False, **how})


def claim(name, measure):
    def run(settings, run_cases=in_turn):
        found = run_cases(measure, settings, list(range(settings.seeds)))
        parts = (Part("doubling", f"{found}", True),)
        return Evidence(f"{found}", parts, details=tuple({"found": f} for f in found))

    return Claim(
        name=name,
        statement="Twice is twice.",
        sources=(),
        measurement="doubled",
        criteria="equal",
        sizes={size: Doubling(seeds=3) for size in ("toy", "digits", "mnist")},
        run=run,
    )


def test_a_claim_is_measured_in_processes_and_kept(tmp_path):
    doubling = claim("doubling", double)
    checked = check_claims([doubling], "toy", here(tmp_path))
    (found,) = checked.claims
    assert found.evidence.headline == "[0.0, 2.0, 4.0]"
    assert found.command == "bnkit claims doubling --data toy --seeds 3"
    assert found.settings == {"data": "digits", "factor": 2.0, "seeds": 3}
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cases").iterdir()}
    assert len(kept) == 3
    again = check_claims([doubling], "toy", here(tmp_path, seeds=4))
    assert again.claims[0].evidence.headline == "[0.0, 2.0, 4.0, 6.0]"
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cases").iterdir()}
    assert len(after) == 4
    assert kept.items() <= after.items()  # what was there was not measured again


def test_a_claim_that_fails_says_why_and_the_others_go_on(tmp_path):
    claims = [claim("broken", broken), claim("doubling", double)]
    checked = check_claims(claims, "toy", here(tmp_path))
    assert [each.verdict for each in checked.claims] == ["failed", "holds"]
    (failed,) = checked.failed
    assert (
        "the case 0 could not be measured: ZeroDivisionError: nothing to divide 0" in failed.reason
    )
    assert "ZeroDivisionError" in str(checked)


def test_ctrl_c_gives_what_had_finished(tmp_path):
    first, second = claim("doubling", double), claim("late", double)

    def stop(*_):
        raise KeyboardInterrupt

    object.__setattr__(second, "run", stop)
    with pytest.raises(ClaimsInterrupted) as caught:
        check_claims([first, second], "toy", here(tmp_path))
    assert [each.verdict for each in caught.value.checked.claims] == ["holds", "not run"]


def test_bad_settings_are_refused_before_any_run(tmp_path):
    with pytest.raises(ValueError, match="`seeds` is -1: pass an integer"):
        check_claims([claim("doubling", double)], "toy", here(tmp_path, seeds=-1))
    with pytest.raises(ValueError, match="`jobs` is 0: pass an integer"):
        check_claims([claim("doubling", double)], "toy", here(tmp_path, jobs=0))
    assert not list(tmp_path.iterdir())


def test_unknown_claims_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="unknown claim 'dubling': did you mean 'doubling'"):
        claim_named([claim("doubling", double)], "dubling")


def test_a_claim_is_known_by_how_its_name_alone_begins():
    table = [claim(name, double) for name in ("learning-rates", "initialisation", "init", "faster")]
    assert claim_named(table, "learning-rate").name == "learning-rates"
    assert claim_named(table, "init").name == "init"  # a whole name comes before a beginning
    with pytest.raises(ValueError, match="unknown claim 'in': did you mean"):
        claim_named(table, "in")


def test_results_of_another_version_are_measured_again_and_that_is_said_once(tmp_path):
    doubling = claim("doubling", double)
    check_claims([doubling], "toy", here(tmp_path))
    for path in (tmp_path / "cases").iterdir():
        fields = json.loads(path.read_text())["result"]  # as bnkit 0.1.0 wrote them
        path.write_text(json.dumps({**fields, "found": -1.0}))
    with pytest.warns(
        UserWarning, match="results of another version of bnkit in .*: 3; they are not read"
    ) as warned:
        (again,) = check_claims([doubling], "toy", here(tmp_path)).claims
    assert len(warned) == 1
    assert again.evidence.headline == "[0.0, 2.0, 4.0]"
