"""`diagnose`: what is wrong with the batch norms of a Keras model, where, and how to fix it."""

from collections.abc import Collection
from typing import Any

import numpy as np

from bnkit import diagnosis
from bnkit.diagnosis.diagnosing import linked, without
from bnkit.diagnosis.finding import SEVERITIES, Severity
from bnkit.diagnosis.layer_records import LayerRecord, spread_of
from bnkit.diagnosis.rules.parameters import finite_gamma, is_dead
from bnkit.diagnosis.rules.running_statistics import is_collapsed, measured_variance
from bnkit.diagnosis.rules.staleness import tolerance
from bnkit.keras.evidence import Norm, gather
from bnkit.keras.fixes import Fix, fixed_by
from bnkit.keras.graph import check_graph
from bnkit.keras.rules.table import RULES


class Diagnosis(diagnosis.Diagnosis):
    """What is wrong with a Keras model; as `bnkit.Diagnosis`, and `fixed` takes a Keras model."""

    def fixed_with_plans(
        self, model: Any, *, severity: Severity = "warning"
    ) -> tuple[Any, tuple[()]]:
        """Return what `fixed` does; a `.keras` file holds its architecture and needs no plans."""
        found = [fix for fix in self.fixes(severity) if isinstance(fix, Fix)]
        return fixed_by(found, model), ()


def diagnose(model: Any, batches: Any = None, *, skip: Collection[str] = ()) -> Diagnosis:
    """Return what is wrong with the batch norms of a Keras `model`, worst first, and how to fix it.

    `batches`, which `bnkit.keras.batches.inputs_in` takes, are training data; each mini-batch is
    run twice, in a copy. Without them, and where the model fails on them, only the rules look that
    need no run, and `not_run` says why. A compiled model shows its optimizer and flags, too. `skip`
    switches rules off: "unfolded" everywhere, "unfolded:head/*" in layers of such paths.

    `found.fixed(model)` returns a copy with the automatic fixes. `model` stays as it is.

    Raises TypeError and ValueError for a model that is not Sequential or Functional or not built,
    for what is not `batches`, and for names in `skip` that no rule or layer has.

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)),
    ...                           keras.layers.BatchNormalization(momentum=0.1, name="n")])
    >>> found = diagnose(model)
    >>> [finding.rule for finding in found.findings]
    ['torch-momentum', 'never-updated']
    >>> found.fixed(model).layers[0].momentum
    0.9
    """
    check_graph(model)
    evidence = gather(model, batches)
    paths = list(evidence.layers)
    found = [finding for rule in RULES for finding in rule.check(evidence)]
    kept = linked(without(found, skip, rules=RULES, paths=paths), RULES)
    return Diagnosis(
        model.name,
        len(evidence.norms),
        tuple(sorted(kept, key=lambda finding: SEVERITIES.index(finding.severity))),
        (evidence.failure,) if evidence.failure else (),
        rules=RULES,
        layers=tuple(_record(norm) for norm in evidence.norms),
    )


def _record(norm: Norm) -> LayerRecord:
    reading, compared = norm.reading, norm.reading.compared
    gamma, variance = finite_gamma(reading), measured_variance(reading)
    by_moving = None if compared is None else compared.variance + reading.eps
    return LayerRecord(
        layer=norm.path,
        kind=reading.kind,
        channels=int(np.prod(norm.layer.moving_mean.shape)),
        values=None if compared is None else compared.given.count,
        mean_shift=None
        if compared is None or by_moving is None
        else spread_of((compared.given.mean - compared.mean) / by_moving.sqrt()),
        variance_ratio=None
        if compared is None or by_moving is None
        else spread_of((compared.given.variance + reading.eps) / by_moving),
        own_difference=None if compared is None else compared.change,
        tolerance=None if compared is None else tolerance(compared),
        gamma=None if gamma is None else spread_of(gamma),
        dead=None if gamma is None else int(is_dead(gamma).sum()),
        collapsed=None if variance is None else int(is_collapsed(reading, variance).sum()),
    )
