"""Files of a sandbox: what a model may reach, and what it cannot however it asks."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.tools.errors import CallError
from app.tools.sandbox import files
from app.tools.sandbox.paths import Place, opened_folder
from app.tools.sandbox.profile import SandboxProfile


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha")
    (folder / "sub" / "b.py").write_text("beta")
    (folder / "sub" / "deep" / "c.py").write_text("gamma")
    return folder


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "guide.md").write_text("# guide")
    return folder


@pytest.fixture
def profile(work: Path, docs: Path) -> SandboxProfile:
    return SandboxProfile.model_validate({"paths": {"read": [str(docs)], "write": [str(work)]}})


def read(profile: SandboxProfile, path: str) -> Any:
    return files.read_file(profile, path, 0, None)["content"]


def listed(profile: SandboxProfile, path: str = ".", glob: str | None = None) -> list[str]:
    return [entry["name"] for entry in files.list_files(profile, path, glob)["entries"]]


class TestPaths:
    def test_are_relative_to_the_first_folder_or_absolute_in_any(
        self, profile: SandboxProfile, docs: Path, work: Path
    ) -> None:
        assert read(profile, "a.txt") == read(profile, "./sub/../a.txt") == read(profile, f"{work}/a.txt") == "alpha"
        assert read(profile, f"{docs}/guide.md") == read(profile, "../docs/guide.md") == "# guide"

    def test_through_a_link_that_stays_inside_are_followed(self, profile: SandboxProfile, work: Path) -> None:
        (work / "inner").symlink_to(work / "sub")
        assert read(profile, "inner/b.py") == "beta"

    @pytest.mark.parametrize(
        "path",
        [
            "../outside/secret.txt",
            "{outside}/secret.txt",
            "sub/../../outside/secret.txt",
            "to-file",
            "to-folder/secret.txt",
            "to-link",
            "sub/relative/secret.txt",
            "/proc/self/cwd/{outside}/secret.txt",
            "/proc/self/root/{outside}/secret.txt",
            "//{outside}//secret.txt",
            "/etc/passwd",
            "/",
            "..",
            "../work-too/x",
        ],
    )
    def test_that_lead_out_are_refused_for_all_tools_alike(
        self, path: str, profile: SandboxProfile, work: Path, outside: Path
    ) -> None:
        (work.parent / "work-too").mkdir()
        (work / "to-file").symlink_to(outside / "secret.txt")
        (work / "to-folder").symlink_to(outside)
        (work / "to-link").symlink_to(work / "to-file")
        (work / "sub" / "relative").symlink_to("../../outside")
        path = path.format(outside=str(outside).lstrip("/") if "/proc" in path else outside)
        calls: list[Callable[[], object]] = [
            lambda: files.read_file(profile, path, 0, None),
            lambda: files.write_file(profile, path, "x"),
            lambda: files.list_files(profile, path, None),
        ]
        for call in calls:
            with pytest.raises(CallError, match="is outside of the sandbox; the folders are: "):
                call()
        assert (outside / "secret.txt").read_text() == "secret"

    @pytest.mark.parametrize("path", ["a\0b", "x" * 4097])
    def test_that_are_none_are_refused(self, path: str, profile: SandboxProfile) -> None:
        with pytest.raises(CallError, match="a path has at most"):
            files.read_file(profile, path, 0, None)

    def test_without_folders_there_is_nothing(self) -> None:
        with pytest.raises(CallError, match="no folder to read from"):
            files.list_files(SandboxProfile(), ".", None)
        with pytest.raises(CallError, match="no folder to write to"):
            files.write_file(SandboxProfile(), "a", "b")

    def test_a_step_that_becomes_a_link_after_the_check_is_not_followed(self, work: Path, outside: Path) -> None:
        place = Place(work, ("sub", "deep"))
        (work / "sub").rename(work / "was-sub")
        (work / "sub").symlink_to(outside.parent)
        (outside.parent / "deep").symlink_to(outside)
        with pytest.raises(CallError, match=r"became a link|is no folder"), opened_folder(place):
            pass

    def test_a_file_that_becomes_a_link_after_the_check_is_not_followed(
        self, profile: SandboxProfile, work: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked = os.path.realpath

        def swapped(path: Any) -> str:
            real = checked(path)
            (work / "a.txt").unlink()
            (work / "a.txt").symlink_to(outside / "secret.txt")
            return real

        monkeypatch.setattr(os.path, "realpath", swapped)
        with pytest.raises(CallError, match="became a link"):
            files.read_file(profile, "a.txt", 0, None)


class TestReading:
    def test_goes_piece_by_piece_without_splitting_characters(self, work: Path) -> None:
        profile = SandboxProfile.model_validate({"paths": {"read": [str(work)]}, "output_bytes": 1024})
        text = "aé€😀" * 700
        (work / "long.txt").write_text(text)
        pieces: list[str] = []
        offset: int | None = 0
        while offset is not None:
            answer = files.read_file(profile, "long.txt", offset, None)
            assert len(answer["content"].encode()) <= 1024
            pieces.append(answer["content"])
            offset = answer.get("next_offset")
        assert "".join(pieces) == text
        assert files.read_file(profile, "long.txt", 0, 1)["content"] == "a"

    def test_of_what_is_no_text_and_beyond_the_end_is_answered(self, profile: SandboxProfile, work: Path) -> None:
        (work / "binary").write_bytes(b"\x80\xff\x00a")
        assert read(profile, "binary") == "\ufffd\ufffd\x00a"
        assert files.read_file(profile, "a.txt", 100, 5) == {"path": f"{work}/a.txt", "size": 5, "content": ""}

    def test_of_anything_but_a_regular_file_is_refused_at_once(self, profile: SandboxProfile, work: Path) -> None:
        os.mkfifo(work / "fifo")
        for path, problem in [("fifo", "no regular file"), ("sub", "no regular file"), (".", "is a folder")]:
            with pytest.raises(CallError, match=problem):
                files.read_file(profile, path, 0, None)
        with pytest.raises(CallError, match="there is no such file"):
            files.read_file(profile, "none", 0, None)
        with pytest.raises(CallError, match="a part of it is no folder"):
            files.read_file(profile, "a.txt/b", 0, None)


class TestWriting:
    def test_replaces_the_whole_file_keeps_its_mode_and_makes_folders(
        self, profile: SandboxProfile, work: Path
    ) -> None:
        (work / "a.txt").chmod(0o640)
        assert files.write_file(profile, "a.txt", "new é") == {"path": f"{work}/a.txt", "size": 6}
        assert (work / "a.txt").read_text() == "new é"
        assert stat.S_IMODE((work / "a.txt").stat().st_mode) == 0o640
        files.write_file(profile, "new/folders/d.txt", "delta")
        assert (work / "new" / "folders" / "d.txt").read_text() == "delta"
        assert not [name for name in os.listdir(work) if name.endswith(".tmp")]

    def test_is_atomic_for_readers(self, profile: SandboxProfile, work: Path) -> None:
        with (work / "a.txt").open() as old:
            files.write_file(profile, "a.txt", "new")
            assert old.read() == "alpha"

    def test_only_goes_to_folders_to_write_in(self, profile: SandboxProfile, docs: Path) -> None:
        with pytest.raises(CallError, match="outside of the sandbox"):
            files.write_file(profile, f"{docs}/guide.md", "x")
        assert (docs / "guide.md").read_text() == "# guide"

    def test_over_anything_but_a_regular_file_or_too_large_is_refused(self, work: Path) -> None:
        profile = SandboxProfile.model_validate({"paths": {"write": [str(work)]}, "file_mb": 1})
        for path, problem in [("sub", "no regular file"), (".", "is a folder"), ("a.txt/b", "is no folder")]:
            with pytest.raises(CallError, match=problem):
                files.write_file(profile, path, "x")
        with pytest.raises(CallError, match="more than 1 MiB"):
            files.write_file(profile, "a.txt", "x" * 1_048_577)
        assert (work / "a.txt").read_text() == "alpha"
        assert not [name for name in os.listdir(work) if name.endswith(".tmp")]


class TestListing:
    def test_of_a_folder_tells_names_types_and_sizes(self, profile: SandboxProfile, work: Path, outside: Path) -> None:
        (work / "link").symlink_to(outside)
        assert files.list_files(profile, ".", None) == {
            "path": str(work),
            "entries": [
                {"name": "a.txt", "type": "file", "size": 5},
                {"name": "link", "type": "link"},
                {"name": "sub", "type": "folder"},
            ],
        }

    @pytest.mark.parametrize(
        ("glob", "names"),
        [
            ("*", ["a.txt", "link", "sub"]),
            ("*.txt", ["a.txt"]),
            ("**/*.py", ["sub/b.py", "sub/deep/c.py"]),
            ("sub/*.py", ["sub/b.py"]),
            ("**/deep/**", ["sub/deep", "sub/deep/c.py"]),
            ("**/[bc].py", ["sub/b.py", "sub/deep/c.py"]),
            ("sub/**/c.py", ["sub/deep/c.py"]),
            ("?.txt", ["a.txt"]),
            ("../**", []),
            ("/etc/*", []),
            ("", []),
        ],
    )
    def test_with_a_pattern_looks_beneath_and_never_through_links(
        self, glob: str, names: list[str], profile: SandboxProfile, work: Path, outside: Path
    ) -> None:
        (work / "link").symlink_to(outside)
        assert listed(profile, ".", glob) == names

    def test_is_bounded_and_says_so(self, profile: SandboxProfile, work: Path) -> None:
        for number in range(files.MAX_LISTED):
            (work / "sub" / f"{number:04}").touch()
        answer = files.list_files(profile, "sub", None)
        assert len(answer["entries"]) == files.MAX_LISTED
        assert "there are more" in answer["note"]

    def test_a_pattern_made_to_be_slow_is_not(self, profile: SandboxProfile, work: Path) -> None:
        (work / ("a" * 200)).write_text("")
        assert listed(profile, ".", "*a" * 100 + "b") == []
        assert listed(profile, ".", "/".join(["**"] * 100)) != []
