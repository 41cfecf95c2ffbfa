"""For test_ranks, which starts this with torchrun: run command lines in these processes, one after another.

    torchrun --nproc_per_node=2 -m tests.in_ranks JOBS.json

JOBS.json: [[script, argument, ...], ...]. Each process writes the exit codes to JOBS.<rank>, and whether it is still
connected when the interpreter ends.
"""

import atexit
import json
import sys
from pathlib import Path

import torch.distributed as dist

from lib.run import processes
from tests.scripts.test_scripts import run

codes = []
jobs = Path(sys.argv[1])
end = jobs.with_suffix(f".{processes.rank()}")
atexit.register(lambda: end.write_text(json.dumps({"codes": codes, "connected": dist.is_initialized()})))
codes.extend(run(*job) for job in json.loads(jobs.read_text()))
