import importlib.util

from bnkit.source_code import fingerprint_within_module

SOURCE = """
BAR = {bar}

def helper(x):
    return x + {helper}

def unused(x):
    return {unused}

def measure(settings, case):
    return [helper(case) for _ in range(BAR)]

STATEMENT = "{statement}"
"""


def fingerprint(folder, name, **values):
    path = folder / f"{name}.py"
    path.write_text(
        SOURCE.format(**{"bar": 1, "helper": 1, "unused": 1, "statement": "", **values})
    )
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    import sys  # noqa: PLC0415  inspect looks modules up there

    sys.modules[name] = module
    spec.loader.exec_module(module)
    return fingerprint_within_module(module.measure)


def test_the_code_changes_with_what_the_function_uses_and_with_nothing_else(tmp_path):
    first = fingerprint(tmp_path, "first")
    assert fingerprint(tmp_path, "same", statement="other words", unused=2) == first
    assert fingerprint(tmp_path, "helped", helper=2) != first
    assert fingerprint(tmp_path, "constant", bar=2) != first
