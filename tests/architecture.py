"""What both distributions keep: floors, a first line in every file, documented names."""

import ast
from pathlib import Path


class House:
    """The files of a package, and its floors: a file imports only from its own and those before."""

    def __init__(self, package, floors):
        self.root = Path(package.__file__).parent
        self.files = sorted(self.root.rglob("*.py"))
        self.name = package.__name__
        self.floors = floors

    def short(self, path):
        return str(path.relative_to(self.root))

    def floor_of(self, path):
        return self.floors.index(path.relative_to(self.root).parts[0].removesuffix(".py"))

    def imports_from_later_floors(self, path):
        ours = [n.split(".")[1] for n in imports_of(path) if n.startswith(f"{self.name}.")]
        return [name for name in ours if self.floors.index(name) > self.floor_of(path)]

    def more_than_names_handed_on(self):
        allowed = ast.Import | ast.ImportFrom | ast.Assign
        return [
            self.short(path)
            for path in self.files
            if path.name == "__init__.py"
            and not all(isinstance(n, allowed) for n in ast.parse(path.read_text()).body[1:])
        ]

    def undocumented(self):
        return [
            f"{self.short(path)}: {node.name}"
            for path in self.files
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            if not node.name.startswith("_") and not ast.get_docstring(node)
        ]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def first_line_of(path):
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def code_of(path):
    """Return the source without its strings, in which docstrings show what users write."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.unparse(tree)
