"""Workers of tests that run in one process or in several, over gloo."""

import os
import subprocess
import sys
from pathlib import Path


def launch(worker: Path, directory: Path, *, processes: int, port: int) -> None:
    """Run a script with a directory as its argument, under torchrun where there are several processes."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(worker), str(directory)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
