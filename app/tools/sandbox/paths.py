"""Where a profile's file tools may go: paths that a model wrote, as open descriptors inside the profile's folders.

A path is resolved first, links and all, and has to lead into a folder of the profile. It is then opened one step after
the other from that folder on, following no link: whoever swaps a step for a link in between makes the call fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.tools.errors import CallError
from app.tools.sandbox.profile import SandboxFolders

_MAX_CHARS = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """A path inside a folder of the profile, by its steps from there; no step is a link, `.` or `..`."""

    folder: Path
    steps: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.folder.joinpath(*self.steps)


class SandboxPaths:
    """The folders of one profile."""

    def __init__(self, folders: SandboxFolders) -> None:
        self._readable = (*folders.write, *folders.read)
        self._writable = folders.write

    def place(self, path: str, *, writing: bool = False) -> Place:
        """Where a path leads. A relative one starts at the profile's first folder, one to write in before others.

        Raises:
            CallError: it leads out of the profile's folders, or is no path.
        """
        folders = self._writable if writing else self._readable
        if not folders:
            raise CallError(f"the sandbox has no folder to {'write to' if writing else 'read from'}")
        if len(path) > _MAX_CHARS or "\0" in path:
            raise CallError(f"a path has at most {_MAX_CHARS} characters, and no NUL")
        try:
            real = Path(os.path.realpath(folders[0] / path))
        except (OSError, ValueError) as error:
            raise CallError(f"{path!r} is no path: {error}") from error
        inside = [folder for folder in folders if real.is_relative_to(folder)]
        if not inside:
            names = ", ".join(map(str, folders))
            raise CallError(f"{path!r} is outside of the sandbox; the folders are: {names}")
        innermost = max(inside, key=lambda folder: len(folder.parts))
        return Place(innermost, real.relative_to(innermost).parts)


@contextmanager
def opened_folder(place: Place, *, make: bool = False) -> Generator[int]:
    """The descriptor of a folder.

    Args:
        make: make the folders that are missing on the way.

    Raises:
        CallError: there is no such folder, or it may not be opened.
    """
    descriptor = -1
    try:
        descriptor = os.open(place.folder, _FOLDER)
        for step in place.steps:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(step, 0o755, dir_fd=descriptor)
            inner = os.open(step, _FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    except OSError as error:
        raise refusal(place, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def refusal(place: Place, error: OSError) -> CallError:
    """What a model is told of a failed system call."""
    match error.errno:
        case errno.ENOENT:
            reason = "there is no such file or folder"
        case errno.ENOTDIR:
            reason = "a part of it is no folder"
        case errno.ELOOP:
            reason = "a part of it became a link"
        case _:
            reason = os.strerror(error.errno) if error.errno else str(error)
    return CallError(f"{str(place.path)!r}: {reason}")
