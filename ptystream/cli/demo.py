"""`ptystream demo`: a simulated beamline, a live session and a viewer: three processes that talk over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ptystream.cli.live import run_session
from ptystream.params.load import load

PTYSTREAM = [sys.executable, "-P", "-m", "ptystream"]
START_S = 120.0


def demo(output: str, frames: int, rate: float, side: int, browser: bool, seed: int, device: str | None) -> int:
    """Body of the command."""
    console = Console(stderr=True)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    asked = ["--frames", str(frames), "--rate", str(rate), "--side", str(side), "--seed", str(seed), "--wait"]
    free = ["--frames-address", "tcp://127.0.0.1:*", "--positions-address", "tcp://127.0.0.1:*"]
    beamline = subprocess.Popen([*PTYSTREAM, "simulate", *asked, *free], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    viewers: list[subprocess.Popen[str]] = []
    try:
        assert beamline.stdout is not None
        assert beamline.stdin is not None
        line = beamline.stdout.readline()
        if not line:
            raise RuntimeError("the simulated beamline did not start; its message stands above")
        told = json.loads(line)
        config = folder / "demo.yaml"
        config.write_text(yaml.safe_dump(configuration(told, folder, side), sort_keys=False))

        published: list[str] = []

        def steered(steering: str) -> None:
            command = [*PTYSTREAM, "view", published[0], "--steer", steering]
            viewer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            viewers.append(viewer)
            assert viewer.stdout is not None
            address, operators = viewer.stdout.readline().strip(), viewer.stdout.readline().strip()
            console.print(f"viewer: {address or 'did not start'}", highlight=False, soft_wrap=True)
            console.print(operators, highlight=False, soft_wrap=True)
            if address and browser and sys.stdout.isatty():
                webbrowser.open(operators.rpartition(" ")[2])

        def ready() -> None:
            assert beamline.stdin is not None
            beamline.stdin.write("go\n")
            beamline.stdin.flush()

        results = run_session(
            load(config, {"device": device}), console, on_publish=published.append, on_steering=steered, on_ready=ready
        )
        beamline.wait(START_S)
        console.print(f"configuration: {config} (to be used again with ptystream live)", highlight=False)
        return 0 if results else 1
    finally:
        for process in (beamline, *viewers):
            if process.poll() is None:
                process.terminate()
            process.wait(START_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def configuration(told: dict[str, Any], folder: Path, side: int) -> dict[str, Any]:
    """The parameters of the demo, for what the simulator told about itself."""
    return {
        "run": "demo",
        "min_frames_for_recon": 32,
        "io": {
            "home": str(folder),
            "rfile": "%(run)s.ptyr",
            "autoplot": {"active": False},
            "recording": {"file": "%(run)s.ptyrec"},
        },
        "scans": {
            "flower": {
                "name": "Full",
                "data": {
                    "name": "ZmqScan",
                    "address": told["frames"],
                    "shape": side,
                    **told["geometry"],
                    "positions": {
                        "name": "ZmqScan",
                        "address": told["positions"],
                        "samples_per_frame": told["samples_per_frame"],
                    },
                },
                "illumination": {"aperture": {"size": 0.42 * side * told["pixel_m"]}},
            }
        },
        "live": {"restart_probe": True, "latency": 0.2},
        # The difference map circles about its solution, once in some forty iterations: the mean of two rounds stands still.
        "engines": {"dm": {"name": "DM", "numiter": 120, "average_last": 80}},
    }
