"""Workers of tests that run in two processes, over gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(worker: Path, directory: Path) -> None:
    """Run a script with a directory as its argument, in two processes that find each other as under torchrun, which
    itself takes seconds to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = [sys.executable, str(worker), str(directory)]
    started = []
    for rank in range(2):
        environment = os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    try:
        said = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(text[-3000:] for text in said)
