"""Python imports this at its start where the folder is on PYTHONPATH: a whole process then counts its statements."""

import atexit
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from counting import SqliteTrace

del sys.path[0]

trace = SqliteTrace().install()
trace.active = True
atexit.register(lambda: Path(os.environ["BENCH_COUNT"]).write_text(str(len(trace.statements))))
