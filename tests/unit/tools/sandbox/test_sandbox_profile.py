"""The operator's file of profiles: what it says, and how its mistakes are told."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from app.tools.sandbox.profile import Files, Network, Sandboxes, SandboxFileError, SandboxProfile


def written(folder: Path, text: str) -> Path:
    path = folder / "sandboxes.yaml"
    path.write_text(dedent(text))
    return path


def test_a_file_holds_profiles_by_name(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    path = written(
        tmp_path,
        f"""
        builder:
          network: on
          files: unenforced
          commands: [sh, /bin/cat]
          paths: {{read: ["{tmp_path}/link"], write: ["{tmp_path}"]}}
          env: {{LEVEL: "3"}}
          cpu_s: 5
          memory_mb: 256
          output_bytes: 4096
          processes: 8
          timeout_s: 2.5
        reader: {{}}
        """,
    )
    sandboxes = Sandboxes.of_file(path)
    builder = sandboxes["builder"]
    assert list(sandboxes) == ["builder", "reader"]
    assert (builder.network, builder.files, builder.timeout_s) == (Network.ON, Files.UNENFORCED, 2.5)
    assert builder.paths.read == (tmp_path / "docs",)
    assert {"sh", "cat", "/bin/cat"} <= builder.commands.keys()
    assert all(program.is_absolute() for program in builder.commands.values())
    assert sandboxes["reader"] == SandboxProfile()


def test_by_default_a_profile_allows_nothing() -> None:
    profile = SandboxProfile()
    assert (profile.network, profile.files) == (Network.OFF, Files.CONFINED)
    assert not profile.commands
    assert not profile.paths.read
    assert not profile.paths.write


@pytest.mark.parametrize(("value", "network"), [("off", Network.OFF), ("no", Network.OFF), ("true", Network.ON)])
def test_yaml_may_take_the_switch_for_a_truth_value(value: str, network: str, tmp_path: Path) -> None:
    assert Sandboxes.of_file(written(tmp_path, f"a: {{network: {value}}}"))["a"].network == network


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "should hold one profile or more"),
        ("a: {b: [", "is no YAML"),
        ("a b: {}", "'a b' is no name for a profile"),
        ("1: {}", "1 is no name for a profile"),
        ("a: []", "a: "),
        ("a: {cpus: 3}", "a.cpus: Extra inputs"),
        ("a: {network: maybe}", "a.network: "),
        ("a: {commands: [no-such-program]}", "a.commands: there is no program 'no-such-program'"),
        ("a: {commands: [bin/sh]}", "a.commands: 'bin/sh' should be a program's name or its absolute path"),
        ("a: {commands: [3]}", "a.commands: 3 should be"),
        ("a: {commands: sh}", "a.commands: should be a list"),
        ("a: {paths: {read: [docs]}}", "a.paths.read.0: should be an absolute path"),
        ("a: {paths: {write: [/no/such/folder]}}", "a.paths.write.0: should be a folder that exists"),
        ("a: {paths: {read: [/etc/passwd]}}", "a.paths.read.0: should be a folder that exists"),
        ("a: {env: {A-B: x}}", "a.env: 'A-B' is no environment variable"),
        ("a: {timeout_s: 0}", "a.timeout_s: "),
        ("a: {timeout_s: .inf}", "a.timeout_s: "),
        ("a: {memory_mb: 1}", "a.memory_mb: "),
    ],
)
def test_a_mistake_is_told_with_the_file_and_the_place(text: str, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SandboxFileError) as error:
        Sandboxes.of_file(path)
    assert str(error.value).startswith(f"SANDBOX_FILE: {path}: ")
    assert problem in str(error.value)


def test_two_programs_of_one_name_are_refused(tmp_path: Path) -> None:
    program = tmp_path / "sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(SandboxFileError, match="two programs are called 'sh'"):
        Sandboxes.of_file(written(tmp_path, f'a: {{commands: [/bin/sh, "{program}"]}}'))


def test_a_file_that_is_not_there_or_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(SandboxFileError, match="cannot be read"):
        Sandboxes.of_file(tmp_path / "none.yaml")
    with pytest.raises(SandboxFileError, match="has more than"):
        Sandboxes.of_file(written(tmp_path, "#" * 1_100_000))
