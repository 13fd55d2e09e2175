"""How much of a processor a run costs, measured from outside: `make bench`, `agent-runner bench`.

The service under test imports this package for its tool, so nothing is imported here before it is needed.
"""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: arguments as on the command line, without the program's name; None takes those of this process.

    Returns:
        an exit code: 0 all runs came to their end, 1 some did not, or nothing could be measured.
    """
    from benchmarks.command import run_command

    return run_command(argv)
