"""Sandbox profiles: what the operator lets a tool call do to this machine."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from app.tools.errors import ToolSettingError

MAX_TIMEOUT_S = 3600.0
MIB = 1024 * 1024

_MAX_FILE_BYTES = MIB
_MAX_COMMANDS = 256
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SandboxFileError(ToolSettingError):
    """The file of profiles cannot be used; one line for each problem, with the setting, the file and the place."""


class Network(StrEnum):
    OFF = "off"  # no command runs where it cannot be kept off
    ON = "on"
    UNENFORCED = "unenforced"  # off where this machine can; where it cannot, a command runs all the same


class Files(StrEnum):
    """Whether commands are held to `paths`; the file tools always are."""

    CONFINED = "confined"  # no command runs where it cannot be held to them
    UNENFORCED = "unenforced"  # held to them where this machine can; where it cannot, a command runs all the same


def _switch(value: object) -> object:
    """YAML reads a bare `on` or `off` as a truth value."""
    return ("on" if value else "off") if isinstance(value, bool) else value


def _folder(path: object) -> Path:
    if not isinstance(path, str) or not os.path.isabs(path):
        raise ValueError("should be an absolute path")
    real = Path(os.path.realpath(path))
    if not real.is_dir():
        raise ValueError("should be a folder that exists")
    return real


def _programs(commands: object) -> dict[str, Path]:
    """The programs by every name that a call may use: as declared, by the file's name, and by the whole path."""
    if not isinstance(commands, list) or len(cast("list[object]", commands)) > _MAX_COMMANDS:
        raise ValueError(f"should be a list of at most {_MAX_COMMANDS} programs")
    programs: dict[str, Path] = {}
    for command in cast("list[object]", commands):
        path = _program(command)
        for name in (str(command), path.name, str(path)):
            if programs.setdefault(name, path) != path:
                raise ValueError(f"two programs are called {name!r}: {programs[name]} and {path}")
    return programs


def _program(command: object) -> Path:
    if not isinstance(command, str) or not command or ("/" in command and not os.path.isabs(command)):
        raise ValueError(f"{command!r} should be a program's name or its absolute path")
    found = shutil.which(command)
    if found is None:
        raise ValueError(f"there is no program {command!r}")
    # Not the real path: some programs go by the name that they are called with.
    return Path(os.path.abspath(found))


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Folders = Annotated[tuple[Annotated[Path, BeforeValidator(_folder)], ...], Field(max_length=64)]


class SandboxFolders(_Data):
    """Real paths. What may be written may be read too, but no program in it may be run."""

    read: _Folders = ()
    write: _Folders = ()


class SandboxProfile(_Data):
    """The bounds of one call.

    Args:
        commands: the programs that a call may start; what these start in turn is theirs to choose.
        env: variables of commands, beside PATH, HOME, TMPDIR and LANG.
        cpu_s: processor seconds of each process.
        memory_mb: address space of each process, in MiB.
        file_mb: the largest file that may be written, in MiB.
        output_bytes: the most of a command's output, or of a file, that one call answers with.
        processes: the most that one command may have at once.
        timeout_s: seconds of wall time of a command.
    """

    network: Annotated[Network, BeforeValidator(_switch)] = Network.OFF
    files: Files = Files.CONFINED
    commands: Annotated[dict[str, Path], BeforeValidator(_programs)] = Field(default_factory=dict[str, Path])
    paths: SandboxFolders = SandboxFolders()
    env: dict[str, str] = Field(default_factory=dict[str, str], max_length=64)
    cpu_s: int = Field(default=30, ge=1, le=86_400)
    memory_mb: int = Field(default=1024, ge=64, le=1_048_576)
    file_mb: int = Field(default=64, ge=1, le=1_048_576)
    output_bytes: int = Field(default=65_536, ge=1024, le=16 * MIB)
    processes: int = Field(default=64, ge=1, le=4096)
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_TIMEOUT_S)

    @field_validator("env")
    @classmethod
    def _are_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name) or "\0" in value:
                raise ValueError(f"{name!r} is no environment variable")
        return env


class Sandboxes(Mapping[str, SandboxProfile]):
    """The operator's profiles, by name."""

    def __init__(self, profiles: Mapping[str, SandboxProfile] | None = None) -> None:
        self._profiles = dict(profiles or {})

    @classmethod
    def of_file(cls, path: Path) -> Sandboxes:
        """The profiles of a YAML file, a mapping of names to profiles.

        Raises:
            SandboxFileError: it cannot be read, something in it is not understood, or names what is not there.
        """
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise SandboxFileError(f"SANDBOX_FILE: {path}: has more than {_MAX_FILE_BYTES} bytes")
            content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SandboxFileError(f"SANDBOX_FILE: {path}: cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise SandboxFileError(f"SANDBOX_FILE: {path}: is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise SandboxFileError(f"SANDBOX_FILE: {path}: should hold one profile or more, each under its name")
        entries = cast("dict[object, object]", content).items()
        return cls({_name(path, name): _profile(path, name, entry) for name, entry in entries})

    def __getitem__(self, name: str) -> SandboxProfile:
        return self._profiles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._profiles)

    def __len__(self) -> int:
        return len(self._profiles)


def _name(path: Path, name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SandboxFileError(
            f"SANDBOX_FILE: {path}: {name!r} is no name for a profile: use 1 to 64 letters, digits, _ and -"
        )
    return name


def _profile(path: Path, name: object, entry: object) -> SandboxProfile:
    try:
        return SandboxProfile.model_validate(entry)
    except ValidationError as error:
        lines = [
            f"SANDBOX_FILE: {path}: {'.'.join(map(str, (name, *problem['loc'])))}: "
            + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors(include_url=False)
        ]
        raise SandboxFileError("\n".join(lines)) from error
