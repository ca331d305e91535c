"""Mini-batches as loaders give them, turned into calls of a model.

This is the grammar of `batches` in every public function: `calls_of` says what each form means.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import Signature
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from bnkit.internals import has_hooks

Call = tuple[tuple[Any, ...], dict[str, Any]]
Inputs = Callable[[Any], Call]

LABELS = frozenset({"label", "labels", "target", "targets"})
_OTHERWISE = "or say by `inputs=` which (args, kwargs) it stands for"


class NoBatchesError(ValueError):
    """`batches` gave no mini-batch: it is empty, or an iterator that is used up."""


def calls_of(model: nn.Module, batches: Any, *, inputs: Inputs | None = None) -> Iterator[Call]:
    """Yield each mini-batch as the positional and keyword arguments of the model's call.

    `batches` is any iterable of mini-batches; a tensor or a dict is one mini-batch itself. A
    mini-batch is a tensor (the one argument), a dict (the keyword arguments), or a tuple or list
    with the inputs first and anything after them, which is left out; these inputs are a tensor, a
    dict, or a tuple or list of positional arguments. Of a dict, labels and targets that the model's
    forward does not take are left out. As detection has them, the inputs may be a list of samples
    and the targets a list of as many: the list is then the one argument, and the second one are
    the targets where forward takes them under that name. `inputs(batch)`, which returns
    (args, kwargs), overrides all of this. Errors of `batches` itself pass through as they are.

    Raises TypeError for what is none of these and for arguments that forward does not take,
    NoBatchesError, which is a ValueError, where there is no mini-batch.

    >>> import torch
    >>> loader = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
    >>> [(args[0].shape, kwargs) for args, kwargs in calls_of(nn.Linear(3, 1), loader)]
    [(torch.Size([2, 3]), {})]
    """
    for call, _ in labelled_calls_of(model, batches, inputs=inputs):
        yield call


def labelled_calls_of(
    model: nn.Module, batches: Any, *, inputs: Inputs | None = None
) -> Iterator[tuple[Call, Any]]:
    """Yield each mini-batch as its call, as `calls_of` does, and its target, None for none.

    The target is the last item of a tuple or list of two or more, and in a dict what stands under
    label(s) or target(s), also where this dict is the first item of a tuple of one.

    >>> [(call, target)] = labelled_calls_of(nn.Identity(), [{"input": 3, "labels": 4}])
    >>> call, target
    (((), {'input': 3}), 4)
    """
    refuse_without_forward(model)
    read = _reader(model) if inputs is None else _overriding(inputs)
    number = 0
    for number, batch in enumerate(each_of(batches), start=1):
        yield read(batch, f"mini-batch {number} of `batches`"), _target_of(batch)
    if not number:
        raise NoBatchesError(why_none(batches))


def _target_of(batch: Any) -> Any:
    match batch:
        case PackedSequence():
            return None
        case tuple() | list() if len(batch) > 1:
            return batch[-1]
        case tuple() | list() if batch:
            return _target_of(batch[0]) if isinstance(batch[0], Mapping) else None
        case Mapping():
            return next((batch[key] for key in batch if key in LABELS), None)
    return None


def each_of(batches: Any) -> Iterable[Any]:
    """Return `batches` as an iterable of mini-batches; TypeError for what is none.

    >>> each_of([1, 2]), each_of({"x": 3})
    ([1, 2], [{'x': 3}])
    """
    if isinstance(batches, Tensor | Mapping):
        return [batches]
    iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if isinstance(batches, str | bytes | nn.Module) or not iterable:
        raise TypeError(
            f"`batches` is a {type(batches).__name__}: pass a DataLoader or another iterable of "
            f"mini-batches, or one mini-batch as a tensor or a dict"
        )
    return batches  # type: ignore[no-any-return]


def refuse_iterator(batches: Any, why: str) -> None:
    """Raise ValueError if `batches` can be read only once; `why` says what needs more.

    >>> refuse_iterator(iter([1]), "training runs several epochs")
    Traceback (most recent call last):
    ValueError: `batches` is a list_iterator, which is used up after one pass, and training runs \
several epochs: pass a list or a DataLoader, which can be begun again
    """
    if isinstance(batches, Iterator):
        raise ValueError(  # noqa: TRY004  iterables of all types are right, but not this one here
            f"`batches` is a {type(batches).__name__}, which is used up after one pass, and {why}: "
            f"pass a list or a DataLoader, which can be begun again"
        )


def number_of(batches: Any) -> int | None:
    """Return how many mini-batches there are, None where `batches` does not say.

    >>> number_of([1, 2]), number_of(iter([1, 2]))
    (2, None)
    """
    try:
        return len(each_of(batches))  # type: ignore[arg-type]
    except TypeError:  # also of a DataLoader, where its data have no length
        return None


def why_none(batches: Any) -> str:
    """Return the message that `batches` gave no mini-batch, and what to do.

    >>> why_none([])[:58]
    '`batches` gave no mini-batch: the list is empty; pass at l'
    """
    if isinstance(batches, Iterator):
        return (
            f"`batches` gave no mini-batch: it is a {type(batches).__name__}, which is used up "
            f"after one pass; pass a list or a DataLoader, which can be begun again"
        )
    return (
        f"`batches` gave no mini-batch: the {type(batches).__name__} is empty; pass at least one "
        f"(drop_last=True of a DataLoader drops the only one where the data are few)"
    )


def refuse_without_forward(model: nn.Module) -> None:
    """Raise TypeError for a module without a forward of its own, naming parts that have one.

    >>> class Training(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = nn.Linear(1, 1)
    >>> refuse_without_forward(Training())  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    TypeError: `model` is a Training, which has no forward of its own: pass the part that...
    """
    if "forward" in vars(model):
        return
    owner = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    # Lightning's own calls that of torch.nn.Module, which raises NotImplementedError.
    if owner is nn.Module or owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
        parts = [f"model.{name}" for name, _ in model.named_children()]
        rest = f", as {' or '.join(parts[:3])}" if parts else ""
        raise TypeError(
            f"`model` is a {type(model).__name__}, which has no forward of its own: pass the part "
            f"that computes{rest}"
        )


def _overriding(inputs: Inputs) -> Callable[[Any, str], Call]:
    def read(batch: Any, place: str) -> Call:
        match inputs(batch):
            case (tuple() as args, dict() as kwargs):
                return args, kwargs
            case other:
                raise TypeError(
                    f"`inputs` returned a {type(other).__name__} for {place}: it must return "
                    f"(args, kwargs), a tuple and a dict, as in lambda batch: ((batch[0],), {{}})"
                )

    return read


def _reader(model: nn.Module) -> Callable[[Any, str], Call]:
    accepted, signature = _keywords_of(model), _signature_of(model)

    def read(batch: Any, place: str) -> Call:
        first: Any = batch
        if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
            if not batch:
                raise TypeError(f"{place} is an empty {type(batch).__name__}: leave it out")
            first, place = batch[0], f"the first item of {place}, its inputs,"
        match first:
            case PackedSequence() | Tensor():
                return _fitting(((first,),), signature, place, model), {}
            case tuple() | list():
                forms = _forms_of(first, batch, signature)
                return _fitting(forms, signature, place, model), {}
            case Mapping():
                return (), _keywords(first, accepted, place, model)
        raise TypeError(
            f"{place} is a {type(first).__name__}: pass a tensor, a dict of keyword arguments or a "
            f"tuple with such inputs first, {_OTHERWISE}"
        )

    return read


def _forms_of(
    items: Sequence[Any], batch: Sequence[Any], signature: Signature | None
) -> Iterator[tuple[Any, ...]]:
    """Yield the positional arguments that these inputs may stand for, the likeliest first."""
    targets = next((each for each in batch[1:] if _are_of_samples(each, items)), None)
    takes_targets = _second_name(signature) in LABELS
    if targets is not None and takes_targets:
        yield items, targets
    if targets is not None and (takes_targets or all(isinstance(t, Mapping) for t in targets)):
        yield (items,)
    yield tuple(items)
    yield (items,)


def _are_of_samples(targets: Any, items: Sequence[Any]) -> bool:
    """Return whether these are targets of single samples: as many as there are, in a list."""
    return isinstance(targets, tuple | list) and len(targets) == len(items)


def _second_name(signature: Signature | None) -> str:
    return "" if signature is None else next(iter([*signature.parameters][1:2]), "")


def _fitting(
    forms: Iterable[tuple[Any, ...]], signature: Signature | None, place: str, model: nn.Module
) -> tuple[Any, ...]:
    """Return the first of these forms that forward takes; TypeError where it takes none."""
    given: tuple[Any, ...] = ()
    for args in forms:
        given = args
        if signature is None or _takes(signature, args):
            return args
    assert signature is not None
    if signature != inspect.signature(model.forward, follow_wrapped=False):
        return given  # what wraps forward may take something else, and the model says if not
    raise TypeError(
        f"{place} is {_in_words(given)}, with which the forward of {type(model).__name__} cannot "
        f"be called: it takes {signature}. Pass the inputs as it takes them, a tuple for several "
        f"arguments, {_OTHERWISE}, as in inputs=lambda batch: ((batch[0],), {{}})"
    )


def _in_words(args: tuple[Any, ...]) -> str:
    (value,) = args
    items = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{items}"


def _takes(signature: Signature, args: tuple[Any, ...]) -> bool:
    try:
        signature.bind(*args)
    except TypeError:
        return False
    return True


def _signature_of(model: nn.Module) -> Signature | None:
    """Return what forward says that it takes, None where it does not or a hook may add to it."""
    return None if has_hooks(model) else _parameters_of(model)


def _parameters_of(model: nn.Module) -> Signature | None:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # written in C, or by torch.jit
        return None


def _keywords(
    batch: Mapping[str, Any], accepted: frozenset[str] | None, place: str, model: nn.Module
) -> dict[str, Any]:
    if accepted is None:
        return dict(batch)
    unknown = [repr(key) for key in batch if key not in accepted | LABELS]
    if unknown:
        raise TypeError(
            f"{place} has {', '.join(unknown)}, which the forward of {type(model).__name__} does "
            f"not take: it takes {', '.join(map(repr, sorted(accepted))) or 'no keyword'}. Leave "
            f"the others out of the dict, {_OTHERWISE}"
        )
    return {key: value for key, value in batch.items() if key in accepted}


def _keywords_of(model: nn.Module) -> frozenset[str] | None:
    """Return the keywords that forward takes, None where it takes any or does not say."""
    signature = _parameters_of(model)
    if signature is None:
        return None
    parameters = signature.parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return frozenset(parameter.name for parameter in parameters if parameter.kind in kinds)


def as_example(model: nn.Module, call: Call) -> Any:
    """Return the call in one of the forms of an example: a tuple, or a dict of keywords.

    Raises TypeError for positional and keyword arguments together where forward does not name all
    of the positional ones.

    >>> as_example(nn.Linear(2, 2), ((1,), {}))
    (1,)
    """
    args, kwargs = call
    if not kwargs:
        return args
    names = list(inspect.signature(model.forward).parameters) if args else []
    if len(names) < len(args):
        raise TypeError(
            f"`inputs` returned {len(args)} positional and {len(kwargs)} keyword arguments, and "
            f"the forward of {type(model).__name__} has no names for all of the positional ones: "
            f"pass all in one way"
        )
    return dict(zip(names, args, strict=False)) | kwargs
