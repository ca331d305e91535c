"""`gather`: the evidence on a model, by a few runs of copies of it."""

import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from bnkit.batches import Call, Inputs, labelled_calls_of, number_of
from bnkit.dataflow import Dataflow, as_call
from bnkit.diagnosis.evidence import Evidence, Loader, Norm
from bnkit.diagnosis.flows import Flows, example_of, flows_of, step_of
from bnkit.diagnosis.losses import Loss, Losses
from bnkit.diagnosis.passes import Passes, passes_over, rows_of
from bnkit.diagnosis.subject import parameter_groups, preserved_generators, subject_of
from bnkit.observation import preserved_random_state
from bnkit.progress import counted
from bnkit.surgery.folding.sites import Site, find_sites

NOTHING_TO_RUN = "neither an example nor mini-batches were given"
_NO_CALLS = Dataflow((), {}, frozenset())


def gather(
    model: nn.Module,
    batches: Any = None,
    *,
    example: Any = None,
    optimizer: Optimizer | None = None,
    inputs: Inputs | None = None,
    loss: Loss | None = None,
    progress: bool = False,
) -> Evidence:
    """Return the evidence on `model`, which stays as it is, as do all random generators.

    It costs three runs on the example, one of them with a backward, and three on each mini-batch;
    without an example the first mini-batch is it. Raises TypeError and ValueError for arguments
    that are none, not for a model that fails on them: the evidence says why it could not be run.

    >>> gather(nn.Sequential(nn.BatchNorm1d(2)), torch.ones(4, 2)).norms[0].as_trained[0].fewest
    4
    """
    groups = parameter_groups(model, optimizer)
    losses = _losses(loss, batches)
    with (
        warnings.catch_warnings(),
        preserved_random_state(),
        preserved_generators(batches),
        torch.inference_mode(mode=False),
    ):
        warnings.simplefilter("ignore")  # what the model says of these runs concerns nobody
        subject, parallel = subject_of(model)
        paths = [site.path for site in find_sites(subject, _NO_CALLS)]
        passes = passes_over(subject, paths)
        first, loader = _run(passes, batches, inputs, losses, progress=progress)
        if example is None and first is not None:
            example = example_of(subject, first)
        flows = Flows(failure=NOTHING_TO_RUN, training_failure=NOTHING_TO_RUN)
        step = None
        if example is not None:
            flows = flows_of(subject, example, paths)
            step = step_of(subject, as_call(example))
    return Evidence(
        model=subject,
        norms=tuple(_norms(subject, flows, passes)),
        flow=flows.evaluating,
        training_flow=flows.training,
        failure=flows.failure or passes.in_eval.failure,
        training_failure=flows.training_failure or passes.in_training.failure,
        example=example,
        batches_given=batches is not None,
        loader=loader,
        step=step,
        optimizer=optimizer,
        groups=groups,
        parallel=parallel,
        losses=None if losses is None else losses.means,
    )


def _losses(loss: Loss | None, batches: Any) -> Losses | None:
    if loss is not None and batches is None:
        raise ValueError("`loss` is given and `batches` are not: pass those on which to take it")
    return None if loss is None else Losses(loss)


def _run(
    passes: Passes,
    batches: Any,
    inputs: Inputs | None,
    losses: Losses | None,
    *,
    progress: bool,
) -> tuple[Call | None, Loader]:
    """Run each mini-batch in all ways; return the first one, and what is known of them."""
    if batches is None:
        return None, Loader()
    calls = labelled_calls_of(passes.in_eval.model, batches, inputs=inputs)
    total, begun = number_of(batches), time.monotonic()
    first, rows = None, []
    for call, target in counted(calls, "diagnosing", total=total, begun=begun, shown=progress):
        first = first or call
        rows += [length for length in [rows_of(call)] if length is not None]
        outputs = passes.run(call)
        if losses is not None:
            losses.add(outputs, target, rows=rows_of(call))
    return first, _loader(batches, tuple(rows))


def _loader(batches: Any, rows: tuple[int, ...]) -> Loader:
    size = getattr(batches, "batch_size", None)
    try:
        length = len(batches.dataset)
    except (AttributeError, TypeError):  # no DataLoader, or one whose data have no length
        length = None
    return Loader(
        batch_size=size if isinstance(size, int) else max(rows, default=None),
        length=length,
        drops_last=bool(getattr(batches, "drop_last", False)),
        rows=rows,
    )


def _norms(model: nn.Module, flows: Flows, passes: Passes) -> Iterator[Norm]:
    training = {site.path: site for site in find_sites(model, flows.training or _NO_CALLS)}
    for site in find_sites(model, flows.evaluating or _NO_CALLS):
        yield _norm(site, training[site.path], flows, passes)


def _norm(site: Site, training: Site, flows: Flows, passes: Passes) -> Norm:
    return Norm(
        path=site.path,
        module=site.module,
        owner=site.owner,
        calls=site.calls,
        training_calls=training.calls,
        as_trained=tuple(passes.as_trained.seen.get(site.path, ())),
        in_eval=tuple(passes.in_eval.seen.get(site.path, ())),
        in_training=tuple(passes.in_training.seen.get(site.path, ())),
        shapes=tuple(flows.shapes.get(site.path, ())),
    )
