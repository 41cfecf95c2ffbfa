"""For test_ranks, which starts this with torchrun: run command lines in these processes, one after another.

    torchrun --nproc_per_node=2 -m tests.in_ranks JOBS.json

JOBS.json: [[script, argument, ...], ...]. Each process writes the exit codes to JOBS.<rank>.
"""

import json
import sys
from pathlib import Path

from lib import ranks
from tests.test_scripts import run

jobs = Path(sys.argv[1])
codes = [run(*job) for job in json.loads(jobs.read_text())]
jobs.with_suffix(f".{ranks.rank()}").write_text(json.dumps(codes))
