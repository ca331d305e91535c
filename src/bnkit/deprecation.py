"""Old names: they work for one more release, and say what replaces them."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Folders of 0.1.0, the inner ones first.
MODULES = {
    "bnkit.lab.claims": "bnkit_claims.claims",
    "bnkit.lab.claiming": "bnkit_claims.core",
    "bnkit.lab.experiments": "bnkit_claims.published",
    "bnkit.lab": "bnkit.experiments",
    "bnkit.gap": "bnkit.train_eval_gap",
    "bnkit.report.claims": "bnkit_claims.report",
}


def warn_of(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that the name `old` is now `new`; the warning points at who called the caller.

    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_of("Diagnosis.mended", "Diagnosis.fixed")
    >>> print(caught[0].message)
    `Diagnosis.mended` is now called `Diagnosis.fixed`; the old name goes with the next release
    """
    warnings.warn(
        f"`{old}` is now called `{new}`; the old name goes with the next release",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


class RenamedModules(MetaPathFinder, Loader):
    """Lets `import` find the modules of 0.1.0 under their old names, with a warning."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module by its old name, None for any other."""
        known = any(fullname == old or fullname.startswith(f"{old}.") for old in MODULES)
        return ModuleSpec(fullname, self) if known else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module by its new name; ModuleNotFoundError where it is gone."""
        old = next(old for old in MODULES if f"{spec.name}.".startswith(f"{old}."))
        new = MODULES[old] + spec.name.removeprefix(old)
        warn_of(spec.name, new, stacklevel=2)
        module = importlib.import_module(new)
        self._own = module.__spec__  # the import machinery writes the old name's over it
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec back: it has run already."""
        module.__spec__ = self._own


def find_renamed_modules() -> None:
    """Let `import` find renamed modules."""
    if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
        # First: another finder would load a module inside a renamed folder a second time.
        sys.meta_path.insert(0, RenamedModules())
