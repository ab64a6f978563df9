"""Files that are whole or not there."""

import os
import uuid
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write through a temporary name in the same folder: a reader never sees half a file, on a shared disk neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
