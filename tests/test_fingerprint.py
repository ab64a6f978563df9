"""Comments and docstrings keep a fingerprint; code changes it."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepneighbors.errors import InputError
from deepneighbors.fingerprint import code_text, fingerprint

MODULE = '''
"""About the module."""

SCALE = 2


def helper(x):
    """About the helper."""
    return x * SCALE


def answer(x):
    # Why.
    return helper(x) + 1


def bystander(x):
    return x
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write the module anew, and return the fingerprints of all of it and of its function ``answer``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(source):
        (tmp_path / "project_code.py").write_text(source)
        sys.modules.pop("project_code", None)
        importlib.invalidate_caches()
        module = importlib.import_module("project_code")
        return fingerprint(["project_code"]), fingerprint(function=module.answer)

    yield of
    sys.modules.pop("project_code", None)


@pytest.mark.parametrize(
    "old, new",
    [
        ("# Why.", "# A better reason, on\n    # two lines."),
        ('"""About the module."""', '"""Something else."""'),
        ('    """About the helper."""\n', ""),
        ("SCALE = 2", 'SCALE = 2\n"""Attribute docstring."""'),
        ("SCALE = 2", "\n\nSCALE = (2)"),
    ],
)
def test_comments_docstrings_and_layout_keep_it(project, old, new):
    assert old in MODULE
    assert project(MODULE) == project(MODULE.replace(old, new))


@pytest.mark.parametrize(
    "old, new", [("SCALE = 2", "SCALE = 3"), ("x * SCALE", "x / SCALE"), ("+ 1", "+ 1.0"), ("+ 1", "+ None")]
)
def test_code_changes_both(project, old, new):
    assert old in MODULE
    before, after = project(MODULE), project(MODULE.replace(old, new))
    assert before[0] != after[0] and before[1] != after[1]


def test_what_a_function_does_not_name_changes_only_its_module(project):
    before, after = project(MODULE), project(MODULE.replace("    return x\n", "    return -x\n"))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_local_variable_is_no_reference_to_a_function_of_its_name(project):
    local = MODULE.replace("    return helper(x) + 1", "    bystander = helper(x)\n    return bystander + 1")
    before, after = project(local), project(local.replace("    return x\n", "    return -x\n"))
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_package_counts_with_all_its_modules_in_any_order(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "project_package" / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/__init__.py", "deep/leaf.py"):
        (tmp_path / "project_package" / name).write_text("x = 1\n")
    before = fingerprint(["project_package", "json"])
    assert before == fingerprint(["json", "project_package"])
    (tmp_path / "project_package" / "deep" / "leaf.py").write_text("x = 2\n")
    assert before != fingerprint(["project_package", "json"])


def test_strings_that_do_something_stay():
    assert code_text("f('a')") != code_text("f('b')")
    assert code_text("def f():\n    'doc'\n    return 'x'") == code_text("def f():\n    return 'x'")


@pytest.mark.parametrize("module", ["no_such_module", "no_such.module", "math"])
def test_a_module_without_source_is_refused(module):
    with pytest.raises(InputError, match=module.replace(".", r"\.")):
        fingerprint([module])


def test_other_python_versions_agree():
    """ast.dump differs between them; our text must not. Tried on each Python that is installed."""
    code = Path(sys.modules[fingerprint.__module__].__file__).read_text()
    code += "def parts(x, wide):\n    return f'{x!r:>{wide}} a {{b}} {x=} {x:%Y-%m}' 'tail' f''\n"
    script = (
        "import sys, types\n"
        "stand_in = types.ModuleType('deepneighbors.errors'); stand_in.InputError = ValueError\n"
        "sys.modules['deepneighbors.errors'] = stand_in\n"
        "code = sys.stdin.read(); space = {}\n"
        "exec(code, space)\n"
        "print(space['code_text'](code))\n"
    )
    pythons = {shutil.which(name) for name in ("python3.11", "python3.12", "python3.13", "python3.14")} - {None}
    for python in {sys.executable, *pythons}:
        done = subprocess.run([python, "-c", script], input=code, capture_output=True, text=True, timeout=60)
        if python != sys.executable and done.returncode:
            continue  # a launcher without a Python behind it
        assert done.stdout.rstrip("\n") == code_text(code), python
