"""`DomainBatchNorm1d/2d/3d`: named sets of running statistics, chosen by `with domain(...)`."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Unpack

import torch
from torch import nn

from bnkit.layers.batch_norm import GuardedBatchNorm, StatisticsOptions, showing_options

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_AFFINE = ("weight", "bias")


class DomainOptions(StatisticsOptions, total=False):
    """The options of per-domain layers: weight and bias are shared, or each domain has its own."""

    affine: bool | Literal["each"]


class DomainBatchNorm(GuardedBatchNorm):
    """What the per-domain layers share: where each domain's statistics are, and which are chosen.

    The buffers of the first domain have torch's names, those of another, "night", end in it:
    `running_mean_night`. As attributes `running_mean`, `running_var` and `num_batches_tracked` are
    those of the chosen domain, so whatever reads or writes them works on that domain. With
    `affine="each"` so are `weight` and `bias`.
    """

    affine: Any  # a bool, or "each"
    # Torch's constructor asks for both before there are any.
    domains: tuple[str, ...] = ()
    domain: str = ""  # the chosen one

    @showing_options()
    def __init__(
        self,
        num_features: int,
        *arguments: Any,
        domains: Sequence[str],
        **options: Unpack[DomainOptions],
    ) -> None:
        _check_domains(domains)
        given: dict[str, Any] = {**options}
        super().__init__(num_features, *arguments, **given)
        if self.affine not in (True, False, "each"):
            raise ValueError(
                f"`affine` is {self.affine!r}: pass True for a weight and bias that all domains "
                f'share, "each" for some of their own, or False for none'
            )
        if not self.track_running_stats:
            raise ValueError(
                "`track_running_stats` is False: without running statistics domains do not differ; "
                "leave it True, or take bnkit.BatchNorm1d, 2d or 3d"
            )
        for other in domains[1:]:
            for name in _STATISTICS:
                self.register_buffer(f"{name}_{other}", getattr(self, name).clone())
            for name in _AFFINE if self.affine == "each" else ():
                shared = getattr(self, name)
                own = None if shared is None else nn.Parameter(shared.detach().clone())
                self.register_parameter(f"{name}_{other}", own)
        self.domains = tuple(domains)
        self.domain = self.domains[0]

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(self.name_in(self.domain, name))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.name_in(self.domain, name), value)

    @property
    def by_domain(self) -> tuple[str, ...]:
        """The names of the tensors that each domain has for itself."""
        return _STATISTICS + (_AFFINE if self.affine == "each" else ())

    def name_in(self, domain: str, name: str) -> str:
        """Return what the tensor `name` of `domain` is called; others have one name in all.

        >>> DomainBatchNorm1d(1, domains=("day", "night")).name_in("night", "running_mean")
        'running_mean_night'
        """
        first = not self.domains or domain == self.domains[0]
        return name if first or name not in self.by_domain else f"{name}_{domain}"

    def reset_running_stats(self) -> None:
        """Set the running statistics of all domains to mean 0 and variance 1, of no batches."""
        super().reset_running_stats()  # of the chosen domain
        self._copy_to_all(_STATISTICS)

    def reset_parameters(self) -> None:
        """Set the running statistics, weights and biases of all domains to those of new layers."""
        super().reset_parameters()
        self._copy_to_all(name for name in self.by_domain if name in _AFFINE)

    def _copy_to_all(self, names: Iterable[str]) -> None:
        """Copy tensors of the chosen domain to all the others."""
        tensors = dict([*self.named_buffers(), *self.named_parameters()])
        with torch.no_grad():
            for name in names:
                for other in self.domains if getattr(self, name) is not None else ():
                    tensors[self.name_in(other, name)].copy_(getattr(self, name))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *details: Any) -> None:
        """Load a checkpoint, of a plain batch norm too: what it has goes to every domain."""
        if not any(key.startswith(f"{prefix}running_mean_") for key in state_dict):
            # As torch does it for checkpoints from before the batches were counted.
            if (details[0].get("version") or 0) < 2:  # the metadata
                state_dict.setdefault(f"{prefix}num_batches_tracked", torch.tensor(0))
            self._spread(state_dict, prefix, _STATISTICS)
        if not any(key.startswith(f"{prefix}weight_") for key in state_dict):
            self._spread(state_dict, prefix, (n for n in self.by_domain if n in _AFFINE))
        # Torch sets attributes by the names of tensors, which are those of the first domain.
        with domain(self, self.domains[0]):
            super()._load_from_state_dict(state_dict, prefix, *details)

    def _spread(self, state_dict: dict[str, Any], prefix: str, names: Iterable[str]) -> None:
        """Give each domain a tensor of its own, of what the checkpoint has once."""
        for name in names:
            if f"{prefix}{name}" in state_dict:
                for other in self.domains[1:]:
                    key = prefix + self.name_in(other, name)
                    state_dict[key] = state_dict[f"{prefix}{name}"].clone()

    def extra_repr(self) -> str:
        """Return the line of the other layers, the domains, and the chosen one if not the first."""
        chosen = "" if self.domain == self.domains[0] else f", domain={self.domain!r}"
        return f"{super().extra_repr()}, domains={self.domains!r}{chosen}"


@contextmanager
def domain(model: nn.Module, name: str) -> Iterator[None]:
    """Let all per-domain batch norms of `model` work on the domain `name` while the block runs.

    That is forward in both modes, and whatever reads or writes `running_mean` and its like; a copy
    of the model made in the block keeps the choice. State dicts are those of all domains, in the
    block too. Blocks nest; afterwards, also by an exception, each layer has the domain that it had
    before. The choice is the model's, so it holds for all threads that use the model.

    Raises ValueError for a model without such layers and for a name that one of them does not
    know, before any has changed.

    >>> model = nn.Sequential(nn.Identity(), DomainBatchNorm1d(1, domains=("day", "night")))
    >>> with domain(model, "night"):
    ...     _ = model(torch.tensor([[1.0], [3.0]]))
    >>> model[1].running_mean, model[1].running_mean_night
    (tensor([0.]), tensor([0.2000]))
    """
    before = [(layer, layer.domain) for layer in _layers_with(model, name)]
    try:
        for layer, _ in before:
            layer.domain = name
        yield
    finally:
        for layer, chosen in before:
            layer.domain = chosen


def _layers_with(model: nn.Module, name: str) -> list[DomainBatchNorm]:
    layers = {p: m for p, m in model.named_modules() if DomainBatchNorm in type(m).__mro__}
    if not layers:
        raise ValueError(
            f"`model` ({type(model).__name__}) has no per-domain batch norm, so it does not have "
            f'the domain {name!r}: make some by bnkit.convert(model, "domains", domains=...)'
        )
    for path, layer in layers.items():
        if name not in layer.domains:
            raise ValueError(
                f"`name` is {name!r}, and layer '{path}' ({type(layer).__name__}) has the domains "
                f"{', '.join(map(repr, layer.domains))}: choose one of them"
            )
    return list(layers.values())


def _check_domains(domains: Sequence[str]) -> None:
    are_several = isinstance(domains, Iterable) and not isinstance(domains, str)
    names = list(domains) if are_several else []
    if not are_several or not all(isinstance(n, str) and n for n in names):
        raise TypeError(
            f'`domains` is {domains!r}: pass the names in a tuple, as in ("day", "night")'
        )
    if not names or len(set(names)) < len(names) or any("." in name for name in names):
        raise ValueError(
            f"`domains` is {domains!r}: pass at least one name, each once, without dots, because "
            f"they become part of the names of buffers"
        )


class DomainBatchNorm1d(DomainBatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with running statistics for each of `domains`: (N, C) or (N, C, L).

    Each domain has the statistics that a torch layer of its own would have. Weight and bias are
    shared; with `affine="each"` every domain has its own, as adversarial propagation (Xie et al.
    2020) trains them, and their names end as those of the statistics do.
    `with bnkit.domain(model, "night"):` chooses one for all layers of a model; where nothing is
    chosen it is the first, so a model in which no domain is ever chosen is exactly torch's.

    The first domain's buffers have torch's names, those of the others end in the domain's:
    `running_mean_night`. A torch checkpoint loads, and what it has goes to every domain; torch's
    layer loads ours with strict=False, and gets those of the first domain. Further arguments are
    those of `bnkit.BatchNorm1d`; track_running_stats=False raises ValueError, and so do names that
    are empty, repeated or have dots. torch.compile(fullgraph=True) takes both modes, with one graph
    for each domain.

    >>> layer = DomainBatchNorm1d(3, domains=("day", "night"))
    >>> [name for name, _ in layer.named_buffers() if "mean" in name]
    ['running_mean', 'running_mean_night']
    """


class DomainBatchNorm2d(DomainBatchNorm, nn.BatchNorm2d):
    """`DomainBatchNorm1d` for inputs (N, C, H, W).

    >>> DomainBatchNorm2d(3, domains=("day", "night"))
    DomainBatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, \
track_running_stats=True, domains=('day', 'night'))
    """


class DomainBatchNorm3d(DomainBatchNorm, nn.BatchNorm3d):
    """`DomainBatchNorm1d` for inputs (N, C, D, H, W).

    >>> layer = DomainBatchNorm3d(1, domains=("ct", "mri"))
    >>> layer.load_state_dict(nn.BatchNorm3d(1).state_dict())
    <All keys matched successfully>
    """
