"""Where the service's time goes: py-spy beside a load."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_SAMPLES_PER_S = 250
_STOP_TIMEOUT_S = 60.0
NOT_INSTALLED = (
    "py-spy is not installed, so there is no profile: pip install py-spy, into this environment or anywhere on the PATH"
)


def find_py_spy() -> str | None:
    """The program, beside this interpreter or on the PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("py-spy", path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))


class ProfileFailed(Exception):
    """py-spy could not look into the service; the text is what it said."""


@contextmanager
def recorded(py_spy: str, pid: int, output: Path) -> Generator[None]:
    """Sample a process and its children while this is entered.

    Args:
        py_spy: the program.
        output: where the stacks go, one a line with its number of samples ("folded"), as flame graphs are made from;
            https://www.speedscope.app shows them.

    Raises:
        ProfileFailed: most often because the system does not let one process look into another.
    """
    command = [py_spy, "record", "--pid", str(pid), "--subprocesses", "--format", "raw", "--output", str(output)]
    command += ["--rate", str(_SAMPLES_PER_S), "--duration", "unlimited"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)  # "enough": it writes its file
        try:
            said, _ = process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    if not output.exists():
        raise ProfileFailed(f"py-spy wrote no profile: {said.decode(errors='replace').strip()}")


def top_functions(folded: Path, count: int = 15) -> list[tuple[str, float]]:
    """The functions in which the most samples were taken, each with its share of all samples."""
    samples: Counter[str] = Counter()
    for line in folded.read_text(encoding="utf-8").splitlines():
        stack, _, number = line.rpartition(" ")
        innermost = stack.rpartition(";")[2]
        function, _, place = innermost.rpartition(":")
        samples[function + ")" if place.rstrip(")").isdecimal() else innermost] += int(number)
    total = samples.total()
    return [(function, number / total) for function, number in samples.most_common(count)]
