"""Run command lines of this project one after another, in one process that imports the libraries once.

    python tests/in_order.py '[["main_llm.py", "--exp2"], ...]' [undrawn]

undrawn: files of figures are empty. Prints a JSON list of [exit code, seconds, stdout, stderr] of each.
"""

import contextlib
import io
import json
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
done, lines = [], json.loads(sys.argv[1])
if sys.argv[2:] == ["undrawn"]:
    from lib.report import figures
    from tests import undrawn

    figures.save = undrawn.put_away
for sys.argv in lines:
    out, error, code, start = io.StringIO(), io.StringIO(), 0, time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    done.append([code, round(time.monotonic() - start, 1), out.getvalue(), error.getvalue()])
print(json.dumps(done))
