"""The process of a temporary Prefect server: ``python prefect_child.py <descriptor of its socket>``.

It serves until its standard input ends, which is when the run that started it is gone, killed or not.
Nothing of cocu is imported here.
"""

import socket
import sys
import threading

import uvicorn
from prefect.server.api.server import create_app


def main() -> None:
    """Serves on the socket that was handed down."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="critical"))
    threading.Thread(target=_stop_when_alone, args=(server,), daemon=True).start()
    server.run(sockets=[listener])


def _stop_when_alone(server: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True


if __name__ == "__main__":
    main()
