"""`make bench`: every benchmark in turn."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

for name in ("dm", "ptyscan", "ingest", "session", "latency", "publish", "memory", "siemens_star"):
    print(f"\n== {name}", flush=True)
    importlib.import_module(name).main()
