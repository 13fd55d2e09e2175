"""`python -m tests.model_server --port 0`: run the model server until it is ended; prints its base URL."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from tests.model_server.server import ModelServer


async def _serve(host: str, port: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with ModelServer(host=host, port=port) as server:
        sys.stdout.write(server.base_url + "\n")
        sys.stdout.flush()
        await ended.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.model_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.host, arguments.port))


main()
