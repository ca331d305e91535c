"""For the reference: options that are stated once are shown with their types and defaults."""

import inspect
import os
from importlib import import_module
from typing import Any

import griffe

os.environ.setdefault("KERAS_BACKEND", "torch")  # what is installed beside bnkit


class Options(griffe.Extension):
    """Show functions as `inspect.signature` does, which knows what stands for `**options`."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the parameters of all functions that end in `**options`."""
        self._look_through(pkg)

    def _look_through(self, thing: griffe.Module | griffe.Class) -> None:
        for member in thing.members.values():
            if member.is_alias:
                continue
            if member.is_function:
                last = [*member.parameters][-1:]
                if last and last[0].kind is griffe.ParameterKind.var_keyword:
                    member.parameters = _shown(member)
            elif member.is_module or member.is_class:
                self._look_through(member)


def _shown(function: griffe.Function) -> griffe.Parameters:
    found = import_module(function.module.path)
    for name in function.path.removeprefix(f"{function.module.path}.").split("."):
        found = getattr(found, name)
    written = {parameter.name: parameter for parameter in function.parameters}
    return griffe.Parameters(
        *(
            written.get(name) or _parameter(shown)
            for name, shown in inspect.signature(found).parameters.items()
        )
    )


def _parameter(shown: inspect.Parameter) -> griffe.Parameter:
    return griffe.Parameter(
        shown.name,
        annotation=inspect.formatannotation(shown.annotation),
        kind=griffe.ParameterKind(shown.kind.description),
        default=None if shown.default is shown.empty else repr(shown.default),
    )
