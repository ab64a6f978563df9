"""Settings changed by a user, given as text."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, get_args, get_origin, get_type_hints

from deepneighbors import checks
from deepneighbors.errors import InputError


def changed(settings: Any, changes: Iterable[str]) -> Any:
    """Settings with some changed, each given as text: ``epochs=30``, ``one_cycle=true``, ``attacks=fgsm,pgd``.

    Raises
    ------
    InputError
        A name that is no setting, a value of another type, or settings that do not fit together.
    """
    hints, known = get_type_hints(type(settings)), [field.name for field in fields(settings) if field.name != "dataset"]
    for change in changes:
        name, equals, text = change.partition("=")
        checks.one_of("setting", name, known)
        try:
            if not equals:
                raise ValueError
            settings = replace(settings, **{name: _read(hints[name], text)})
        except ValueError:
            shown = ",".join(map(str, value)) if isinstance(value := getattr(settings, name), tuple) else value
            raise InputError(f"setting {change!r} cannot be read; give it like {name}={shown}") from None
    if hasattr(settings, "check"):
        settings.check()
    return settings


def _read(kind: Any, text: str) -> Any:
    """A value of a type from text; a tuple's are parted by commas, and ``none`` stands for None."""
    allowed = get_args(kind)
    if get_origin(kind) is tuple:
        values = tuple(_read(allowed[0], part) for part in text.split(","))
        if allowed[-1] is not Ellipsis and len(values) != len(allowed):
            raise ValueError
        return values
    if type(None) in allowed:
        return None if text.lower() == "none" else _read(allowed[0], text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return kind(text)
