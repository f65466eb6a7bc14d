"""`make bench`: every benchmark in turn, each in a process of its own; arguments are handed to the first (`--peers`)."""

import subprocess
import sys
from pathlib import Path

NAMES = (
    "dm",
    "engines",
    "multislice",
    "growing",
    "ptyscan",
    "ingest",
    "decode",
    "recording",
    "session",
    "latency",
    "publish",
    "web",
    "plots",
    "memory",
    "siemens_star",
)

if __name__ == "__main__":
    missed = []
    for name in NAMES:
        print(f"\n== {name}", flush=True)
        arguments = sys.argv[1:] if name == "dm" else []
        if subprocess.run([sys.executable, "-P", Path(__file__).with_name(f"{name}.py"), *arguments]).returncode:
            missed.append(name)
    print("\nreached" if not missed else f"\nfailed, or not what should be reached: {', '.join(missed)}")
    sys.exit(bool(missed))
