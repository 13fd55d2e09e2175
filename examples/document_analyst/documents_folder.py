"""The one folder that the example's tools may read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 2_000_000

_OWN_DOCUMENTS = Path(__file__).parent / "documents"


class DocumentError(ValueError):
    """A path is not a readable document; the message is for the model."""


class DocumentsFolder:
    """A folder of documents. Paths in and out are relative to it, with forward slashes.

    Every path is resolved, symbolic links included, before it is compared with the folder: `..`, absolute paths and
    links that lead outside are all refused in the same way.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    @classmethod
    def configured(cls) -> DocumentsFolder:
        """The folder named by DOCUMENTS_DIR, by default the example's own documents."""
        return cls(Path(os.environ.get("DOCUMENTS_DIR") or _OWN_DOCUMENTS))

    def files(self, folder: str = "") -> Iterator[Path]:
        """All documents under a subfolder, in order of their paths; hidden files are left out."""
        start = self._resolved(folder)
        if not start.is_dir():
            raise DocumentError(f"there is no folder {folder!r}")
        for path in sorted(start.rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(self._root).parts)
            if not hidden and path.is_file() and path.resolve().is_relative_to(self._root):
                yield path

    def name_of(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def text_of(self, name: str) -> str:
        """The text of one document.

        Raises:
            DocumentError: it is outside of the folder, absent, too large or no text.
        """
        path = self._resolved(name)
        if not path.is_file():
            raise DocumentError(f"there is no document {name!r}; list_documents shows what there is")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DocumentError(f"{name!r} is larger than {MAX_FILE_BYTES} bytes")
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DocumentError(f"{name!r} is not a text document") from error

    def _resolved(self, name: str) -> Path:
        try:
            path = (self._root / name).resolve()
            path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, a loop of links
            raise DocumentError(f"{name!r} is not a path") from error
        if not path.is_relative_to(self._root):
            raise DocumentError(f"{name!r} is outside of the documents folder")
        return path
