"""Reading, writing and listing files inside a profile's folders, each within its bounds."""

from __future__ import annotations

import fnmatch
import itertools
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from app.tools.errors import CallError
from app.tools.sandbox.paths import Place, SandboxPaths, opened_folder, refusal
from app.tools.sandbox.profile import MIB, SandboxProfile

MAX_LISTED = 1000
MAX_VISITED = 50_000
_MAX_DEPTH = 64
_UTF8_LONGEST = 4


def read_file(profile: SandboxProfile, path: str, offset: int, limit: int | None) -> dict[str, Any]:
    """A piece of a file as text.

    Args:
        offset: bytes from the beginning.
        limit: the most bytes; the profile's `output_bytes` bounds it in any case.

    Raises:
        CallError: the path leads nowhere or out of the profile's folders, or is no regular file.
    """
    place = SandboxPaths(profile.paths).place(path)
    wanted = min(limit or profile.output_bytes, profile.output_bytes)
    with _opened_file(place) as (descriptor, size):
        data = os.pread(descriptor, wanted, offset)
    rest = size - offset - len(data)
    if rest > 0:
        data = _whole_characters(data)
    answer: dict[str, Any] = {"path": str(place.path), "size": size, "content": data.decode("utf-8", "replace")}
    if rest > 0:
        answer["next_offset"] = offset + len(data)
    return answer


def write_file(profile: SandboxProfile, path: str, content: str) -> dict[str, Any]:
    """Put a whole file in place at once: a reader sees the old one or the new one, and a crash leaves either.

    Raises:
        CallError: the path leads out of the profile's folders or to what is no regular file, or the content is too
            large.
    """
    place = SandboxPaths(profile.paths).place(path, writing=True)
    data = content.encode("utf-8", "replace")
    if len(data) > profile.file_mb * MIB:
        raise CallError(f"the content has more than {profile.file_mb} MiB")
    if not place.steps:
        raise CallError(f"{str(place.path)!r}: is a folder")
    with opened_folder(replace(place, steps=place.steps[:-1]), make=True) as folder:
        try:
            _put(folder, place.steps[-1], data)
        except OSError as error:
            raise refusal(place, error) from error
    return {"path": str(place.path), "size": len(data)}


def list_files(profile: SandboxProfile, path: str, glob: str | None) -> dict[str, Any]:
    """What is in a folder, or what beneath it has a path that `glob` matches; sorted, and links not followed.

    Raises:
        CallError: the path leads nowhere or out of the profile's folders, or is no folder.
    """
    place = SandboxPaths(profile.paths).place(path)
    pattern = _Glob(glob) if glob is not None else None
    with opened_folder(place) as folder:
        walk = _Walk(pattern)
        walk.visit(folder, ())
    answer: dict[str, Any] = {"path": str(place.path), "entries": walk.found}
    if walk.cut:
        answer["note"] = f"there are more: this lists at most {MAX_LISTED}, out of at most {MAX_VISITED} looked at"
    return answer


@contextmanager
def _opened_file(place: Place) -> Generator[tuple[int, int]]:
    if not place.steps:
        raise CallError(f"{str(place.path)!r}: is a folder")
    with opened_folder(replace(place, steps=place.steps[:-1])) as folder:
        # Without O_NONBLOCK, opening a FIFO waits for whoever writes to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(place.steps[-1], flags, dir_fd=folder)
        except OSError as error:
            raise refusal(place, error) from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise CallError(f"{str(place.path)!r}: is no regular file")
            yield descriptor, facts.st_size
        finally:
            os.close(descriptor)


def _whole_characters(data: bytes) -> bytes:
    """The bytes without the beginning of a character at their end, so that the next piece begins with a whole one."""
    for back in range(1, min(_UTF8_LONGEST, len(data) - 1) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back else data
    return data


def _put(folder: int, name: str, data: bytes) -> None:
    mode = 0o644
    with suppress(FileNotFoundError):
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(facts.st_mode):
            raise CallError(f"{name!r} is there and no regular file")
        mode = stat.S_IMODE(facts.st_mode) & 0o777
    draft = f".{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise


@dataclass(frozen=True, slots=True)
class _Glob:
    """A pattern of steps: `*`, `?` and `[...]` inside one step, `**` for any number of steps."""

    text: str

    def matches(self, steps: tuple[str, ...]) -> bool:
        """Keeps a set of places in the pattern, so that it takes steps times places and never goes back."""
        parts = self.text.split("/")
        places = self._with_skipped({0}, parts)
        for step in steps:
            reached: set[int] = set()
            for place in places:
                if place == len(parts):
                    continue
                if parts[place] == "**":
                    reached.add(place)
                elif fnmatch.fnmatchcase(step, parts[place]):
                    reached.add(place + 1)
            places = self._with_skipped(reached, parts)
        return len(parts) in places

    @staticmethod
    def _with_skipped(places: set[int], parts: list[str]) -> set[int]:
        found = set(places)
        for place in places:
            while place < len(parts) and parts[place] == "**":
                place += 1
                found.add(place)
        return found


class _Walk:
    """Collects entries beneath a folder, within bounds."""

    def __init__(self, pattern: _Glob | None) -> None:
        self.found: list[dict[str, Any]] = []
        self.cut = False
        self._pattern = pattern
        self._visited = 0

    def visit(self, folder: int, above: tuple[str, ...]) -> None:
        with os.scandir(folder) as entries:
            names = sorted(itertools.islice(entries, MAX_VISITED), key=lambda entry: entry.name)
        for entry in names:
            self._visited += 1
            if self._visited > MAX_VISITED or len(self.found) >= MAX_LISTED:
                self.cut = True
                return
            steps = (*above, entry.name)
            if self._pattern is None or self._pattern.matches(steps):
                self.found.append(_described(entry, steps))
            if self._pattern is not None and entry.is_dir(follow_symlinks=False):
                self._enter(folder, entry.name, steps)

    def _enter(self, folder: int, name: str, steps: tuple[str, ...]) -> None:
        if len(steps) >= _MAX_DEPTH:
            self.cut = True
            return
        with suppress(OSError):  # it is gone, became a link, or may not be read
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                self.visit(inner, steps)
            finally:
                os.close(inner)


def _described(entry: os.DirEntry[str], steps: tuple[str, ...]) -> dict[str, Any]:
    name = os.fsencode("/".join(steps)).decode("utf-8", "replace")
    if entry.is_symlink():
        return {"name": name, "type": "link"}
    if entry.is_dir(follow_symlinks=False):
        return {"name": name, "type": "folder"}
    size = None
    with suppress(OSError):
        size = entry.stat(follow_symlinks=False).st_size
    return {"name": name, "type": "file", "size": size}
