"""Plain text for a terminal."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text: the first column to the left, the numbers to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shape = "  ".join([f"{{:<{wide[0]}}}", *(f"{{:>{width}}}" for width in wide[1:])])
    return "\n".join(shape.format(*row) for row in rows)


def duration(seconds: float | None) -> str:
    """Seconds in words that are easy to compare; a question mark when they are unknown."""
    if seconds is None:
        return "?"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
