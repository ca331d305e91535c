"""`check_claims`: measure claims one after another, each over all cores, and collect them."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnkit.experiments.provenance import environment, usable_cores
from bnkit.experiments.settings import check_count
from bnkit_claims.core.checked import Checked, CheckedClaim
from bnkit_claims.core.claim import Claim, ClaimSettings
from bnkit_claims.core.sweep import Sweep


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while claims are measured; `checked` holds what had finished, the rest as not run."""

    def __init__(self, checked: Checked) -> None:
        super().__init__()
        self.checked = checked


def check_claims(
    claims: Sequence[Claim[Any]],
    data: str = "digits",
    *,
    out: Path | str,
    folder: str | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Checked:
    """Return the verdict on each claim, measured on a data set ("toy" is a few seconds of digits).

    `jobs` cases run at a time (one a core), each result is kept in the folder `out`/cases, and
    what is there is not measured again. A claim that cannot be measured is recorded as failed with
    its reason, and the others go on. `seeds` is how many, where not each claim's own number.

    Raises ValueError for settings out of range, and Interrupted, with what had finished, on Ctrl-C.
    """
    jobs = usable_cores() if jobs is None else jobs
    check_count("jobs", jobs)
    planned = [
        (claim, settings, _before(claim, settings, data))
        for claim in claims
        for settings in [claim.settings(data, folder=folder, seeds=seeds)]
    ]
    found = [unmeasured for _, _, unmeasured in planned]
    try:
        for place, (claim, settings, unmeasured) in enumerate(planned):
            each = Sweep(Path(out), jobs=jobs, title=claim.name, progress=progress)
            found[place] = _measured(claim, settings, unmeasured, each)
    except KeyboardInterrupt:
        raise Interrupted(_collected(found)) from None
    return _collected(found)


def _measured(
    claim: Claim[Any], settings: ClaimSettings, unmeasured: CheckedClaim, each: Sweep
) -> CheckedClaim:
    began = time.perf_counter()
    try:
        evidence = claim.run(settings, each)
    except (RuntimeError, ValueError, ChildProcessError) as error:
        return replace(unmeasured, reason=str(error))
    return replace(unmeasured, evidence=evidence, seconds=time.perf_counter() - began)


def _before(claim: Claim[Any], settings: ClaimSettings, data: str) -> CheckedClaim:
    return CheckedClaim(
        name=claim.name,
        statement=claim.statement,
        sources=claim.sources,
        measurement=claim.measurement,
        criteria=claim.criteria,
        settings={**settings.decisive, "seeds": settings.seeds},
        command=f"bnkit claims {claim.name} --data {data} --seeds {settings.seeds}",
    )


def _collected(found: Iterable[CheckedClaim]) -> Checked:
    return Checked(environment(), tuple(found))
