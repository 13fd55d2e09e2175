"""Generate clients from the OpenAPI document, without a warning, and check the programs that use them.

    python tests/clients/generate.py [--output FOLDER] [--run URL]

With `--run` the programs are also run, against the service at URL. Needs npm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
from fastapi import FastAPI

from app.api import build_api

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
# What the generators say when something in the document is beyond them.
COMPLAINTS = ("warning", "skipping", "⚠", "✘")


@asynccontextmanager
async def _not_served(_: FastAPI) -> AsyncGenerator[None]:
    yield


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, default=Path("dist/clients"))
    arguments.add_argument("--run", metavar="URL")
    given = arguments.parse_args()
    output: Path = given.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    document = output / "openapi.json"
    app = build_api(lifespan=_not_served, max_body_bytes=1)
    document.write_bytes(orjson.dumps(app.openapi(), option=orjson.OPT_INDENT_2))
    python(document, output / "python", given.run)
    typescript(document, output / "typescript", given.run)


def python(document: Path, folder: Path, url: str | None) -> None:
    """Generate with openapi-python-client, check with pyright."""
    folder.mkdir()
    package = folder / "agent_runner_client"
    options = ("--path", document, "--output-path", package, "--meta", "none", "--fail-on-warning")
    run(folder, BIN / "openapi-python-client", "generate", *options, quiet=True)
    # Where the program lies in the repository there is nothing that it could import; here there is.
    program = (HERE / "python" / "program.py").read_text().replace("# pyright: reportMissingImports=false\n", "")
    (folder / "program.py").write_text(program)
    run(folder, BIN / "pyright", "--pythonpath", sys.executable, "program.py")
    if url is not None:
        run(folder, sys.executable, "program.py", url=url)


def typescript(document: Path, folder: Path, url: str | None) -> None:
    """Generate with openapi-typescript, check with tsc."""
    shutil.copytree(HERE / "typescript", folder)
    run(folder, "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--silent")
    run(folder, folder / "node_modules/.bin/openapi-typescript", document, "--output", "schema.d.ts", quiet=True)
    run(folder, folder / "node_modules/.bin/tsc")
    if url is not None:
        run(folder, "node", "built/program.js", url=url)


def run(folder: Path, *command: str | Path, quiet: bool = False, url: str | None = None) -> None:
    """Run a program in a folder; with `quiet` it may not complain."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    if url is not None:
        environment["SERVICE_URL"] = url
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != 0 or (quiet and any(word in said.lower() for word in COMPLAINTS)):
        raise SystemExit(f"{Path(command[0]).name} failed:\n{said}")
    sys.stdout.write(f"{Path(command[0]).name} {command[1] if len(command) > 1 else ''}: fine\n")


if __name__ == "__main__":
    main()
