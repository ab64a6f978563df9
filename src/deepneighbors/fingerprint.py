"""Fingerprints of code that change with what the code may do, and not with its comments or docstrings.

A fingerprint is the SHA-256 of the syntax trees of some modules and of one function. The trees are written by
our own walk and not by ``ast.dump``, whose output differs between Python versions: results recorded under
Python 3.12 must carry the fingerprint that Python 3.11 computes.
"""

import ast
import hashlib
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from deepneighbors.errors import InputError


def fingerprint(modules: Iterable[str] = (), function: Callable | None = None) -> str:
    """SHA-256 (64 hex digits) of the code of modules and of one function.

    Args:
        modules: importable names. A package stands for all modules below it. The order does not matter.
        function: its own source counts, and so does each function, class or constant of its module that it
            names, directly or through another one; the rest of its module does not.

    Raises:
        InputError: a module that cannot be found, or code without a source file.
    """
    digest = hashlib.sha256()
    for name, path in sorted({pair for module in modules for pair in _files(module)}):
        digest.update(f"{name}\n{_module_text(path.read_bytes())}\n".encode())
    for definition in _definitions(function) if function else ():
        digest.update(f"{_text(definition)}\n".encode())
    return digest.hexdigest()


def code_text(source: str) -> str:
    """Version-independent text of some Python source, without comments, docstrings and line numbers."""
    return _text(ast.parse(source))


@cache  # stages share most of their modules, and to parse one takes far longer than to read it
def _module_text(source: bytes) -> str:
    return _text(ast.parse(source))


def _files(module: str) -> Iterator[tuple[str, Path]]:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"The module {module!r} has no Python source to take a fingerprint of.")
    origin = Path(spec.origin)
    if spec.submodule_search_locations is None:
        yield module, origin
        return
    for path in origin.parent.rglob("*.py"):
        yield f"{module}/{path.relative_to(origin.parent).as_posix()}", path


def _definitions(function: Callable) -> list[ast.AST]:
    """The function, then what it names in its own module, transitively, by name."""
    try:
        start = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError) as error:
        raise InputError(f"The function {function!r} has no source to take a fingerprint of.") from error
    top_level = _top_level(function)
    top_level.pop(function.__name__, None)
    found: dict[str, ast.AST] = {}
    waiting: list[ast.AST] = [start]
    while waiting:
        for name in sorted(_references(waiting.pop()) & (top_level.keys() - found.keys())):
            found[name] = top_level[name]
            waiting.append(top_level[name])
    return [start, *(found[name] for name in sorted(found))]


def _top_level(function: Callable) -> dict[str, ast.AST]:
    try:
        body = ast.parse(inspect.getsource(inspect.getmodule(function))).body  # type: ignore[arg-type]
    except (OSError, TypeError):  # a notebook cell has no module file
        return {}
    return {name: node for node in body for name in _bound(node)}


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return _names(node, ast.Store) if isinstance(node, ast.Assign | ast.AnnAssign) else set()


def _references(node: ast.AST) -> set[str]:
    """Names that a definition reads from outside; a local variable may bear the name of another function."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return _names(node)
    declared = {name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names}
    arguments = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
    outside = set().union(*map(_names, [*node.decorator_list, node.args]))  # read before the body binds anything
    return outside | (_names(node) - ((_names(node, ast.Store) | arguments) - declared))


def _names(node: ast.AST, use: type[ast.expr_context] = ast.Load) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, use)}


def _text(node: object) -> str:
    """Node type and fields; fields that are None or an empty list are left out, as newer Pythons add such."""
    if isinstance(node, list):
        return "[" + ",".join(_text(item) for item in node if not _is_string_statement(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty parts to f-strings
        node = ast.JoinedStr([part for part in node.values if not _is_string(part, "")])
    texts = {name: _text(value) for name, value in ast.iter_fields(node) if value is not None and name != "kind"}
    fields = ",".join(f"{name}={text}" for name, text in texts.items() if text != "[]")
    return f"{type(node).__name__}({fields})"


def _is_string_statement(node: object) -> bool:
    """Docstrings, and the strings below attributes that document them: none has an effect."""
    return isinstance(node, ast.Expr) and _is_string(node.value)


def _is_string(node: ast.expr, text: str | None = None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and text in (None, node.value)
