"""For the reference: options with their types, examples as code, names as links."""

import inspect
import os
import re
from importlib import import_module
from typing import Any

import griffe

os.environ.setdefault("KERAS_BACKEND", "torch")  # what is installed beside bnkit

# The modules that the reference documents, each on a page of its own, with all its public names.
MODULES = (
    "bnkit.surgery",
    "bnkit.checkpoints",
    "bnkit.recalibration",
    "bnkit.train_eval_gap",
    "bnkit.parameters",
    "bnkit.diagnosis",
    "bnkit.monitoring",
    "bnkit.experiments",
    "bnkit.report",
    "bnkit.layers",
    "bnkit.functional",
    "bnkit.moments",
    "bnkit.batches",
    "bnkit.dataflow",
    "bnkit.benchmarking",
    "bnkit.kernels",
    "bnkit.keras",
)
# Of the modules without a list of public names: those that `bnkit` hands on, and a few more.
MORE = {
    "bnkit.batches": ["calls_of"],
    "bnkit.functional": ["batch_norm"],
    "bnkit.kernels": ["choice.choose_kernel"],
}
_CODE = re.compile(r"^>>> ")
_NAME = re.compile(r"(?<![`\[])`((?:bnkit\.)?[A-Za-z_][\w.]*)(\(\.*\))?`(?![`\]])")


def public_names(module: str) -> list[str]:
    """Return the public names of a module, as paths in it."""
    import bnkit  # noqa: PLC0415  torch's import takes a second, and mkdocs shows its help without

    found = import_module(module)
    if hasattr(found, "__all__"):
        return list(found.__all__)
    own = [name for name in bnkit.__all__ if _home(getattr(bnkit, name)) == module]
    return MORE.get(module, sorted(own))


def anchor_of(module: str, name: str) -> str:
    """Return how the reference calls a name: as `bnkit` hands it on, else by its module."""
    import bnkit  # noqa: PLC0415  as above

    short, found = name.rpartition(".")[2], import_module(module)
    same = short in bnkit.__all__ and getattr(found, name, None) in (None, getattr(bnkit, short))
    return f"bnkit.{short}" if same else f"{module}.{name}"


def documented() -> dict[str, list[str]]:
    """Return the names that the reference documents, by module."""
    return {m: [anchor_of(m, name) for name in public_names(m)] for m in MODULES}


class Docstrings(griffe.Extension):
    """What a reader of the page needs more than one of the source."""

    def __init__(self) -> None:
        super().__init__()
        names = [name for of_module in documented().values() for name in of_module]
        self._links = {name: name for name in names}
        for name in names:
            short = name.rpartition(".")[2]
            # `mask` or `add` alone may be a word: a link needs a dot or a capital.
            if not short.islower() or "_" in short:
                self._links.setdefault(short, name)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Replace the parameters of all functions that end in `**options`, and all docstrings."""
        self._look_through(pkg)

    def _look_through(self, thing: griffe.Module | griffe.Class) -> None:
        if thing.docstring:
            thing.docstring.value = self._readable(thing.docstring.value, thing.path)
        for member in thing.members.values():
            if member.is_alias:
                continue
            if member.is_function:
                last = [*member.parameters][-1:]
                if last and last[0].kind is griffe.ParameterKind.var_keyword:
                    member.parameters = _shown(member)
            if member.is_module or member.is_class:
                self._look_through(member)
            elif member.docstring:
                member.docstring.value = self._readable(member.docstring.value, member.path)

    def _readable(self, text: str, path: str) -> str:
        """Return a docstring as Markdown: its examples are code, and public names are links."""
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
            if _CODE.match(paragraph):
                paragraphs.append(f"```pycon\n{paragraph}\n```")
            else:
                paragraphs.append(_NAME.sub(lambda name: self._linked(name, path), paragraph))
        return "\n\n".join(paragraphs)

    def _linked(self, name: re.Match[str], path: str) -> str:
        target = self._links.get(name[1])
        own = target is None or target.rpartition(".")[2] == path.rpartition(".")[2]
        return name[0] if own else f"[{name[0]}][{target}]"


def _home(thing: object) -> str:
    """Return the module of the reference in which a thing is made."""
    made_in = getattr(thing, "__module__", "")
    return next((m for m in MODULES if f"{made_in}.".startswith(f"{m}.")), "")


def _shown(function: griffe.Function) -> griffe.Parameters:
    """Return the parameters as `inspect.signature` does, which knows what `**options` are."""
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
