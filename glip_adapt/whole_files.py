"""Files that appear under their name only when they are complete, and the checksum that tells whether they are."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write what becomes ``path`` at the end; after an error, all is as it was.

    The folder of ``path`` is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer, in a folder, so that the file is made by whoever writes it.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
