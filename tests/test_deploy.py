"""What lies in deploy/ fits what a session serves, and parses."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from deploy_parts import DEPLOY, faster, named, served

from ptystream.cli.app import app
from ptystream.detectors.simulated.simulator import Beamline
from ptystream.params.load import load

RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "ptystream.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_looks_at_what_is_served_and_says_what_to_do(rule: dict[str, Any]) -> None:
    assert named(rule["expr"]) <= served()
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert len(rule["annotations"]["description"]) > 80
    assert "$labels.instance" in rule["annotations"]["summary"]


def test_every_alert_is_in_the_operators_page_and_has_a_test() -> None:
    page = (DEPLOY.parent / "docs" / "how-to" / "run-at-a-beamline.md").read_text()
    tests = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    for rule in RULES:
        assert rule["alert"] in page
        assert f'alertname="{rule["alert"]}"' in tests


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_draws_what_is_served(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        assert named(target["expr"]) <= served()
        assert named(target["expr"])


def test_the_dashboard_answers_the_four_questions_and_draws_every_metric() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows[:4] == ["Is it keeping up?", "Is anything lost?", "Is it converging?", "How old is the picture?"]
    shown = set().union(*(named(target["expr"]) for panel in PANELS for target in panel["targets"]))
    unshown = {"ptystream_iterations_total", "ptystream_frame_latency_seconds_sum", "ptystream_frame_latency_seconds_count"}
    unshown |= {"ptystream_iteration_duration_seconds_bucket", "process_open_fds", "process_start_time_seconds"}
    assert served() - shown == unshown


def test_the_dashboards_source_is_the_provisioned_one() -> None:
    folder = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {source["uid"]}
    (provider,) = yaml.safe_load((folder / "dashboards" / "ptystream.yml").read_text())["providers"]
    assert provider["options"]["path"].startswith("/")
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24


def test_rules_are_made_faster_as_a_whole() -> None:
    quick = {rule["alert"]: rule for rule in faster(10)["groups"][0]["rules"]}
    assert quick["PtystreamDown"]["for"] == "6000ms"
    assert "> 12  # seconds" in quick["PtystreamEngineStuck"]["expr"]
    assert "> 6)  # seconds" in quick["PtystreamStreamStalled"]["expr"]
    assert "[6000ms]" in quick["PtystreamFallingBehind"]["expr"]


@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_agrees(command: list[str], require: Callable[[str, bool], None]) -> None:
    require("prometheus", shutil.which("promtool") is not None)
    done = subprocess.run(["promtool", *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_containers_run_what_the_wheel_brings() -> None:
    for name in ("Containerfile", "Containerfile.cuda"):
        lines = (DEPLOY / name).read_text().splitlines()
        images = [line.split()[1] for line in lines if line.startswith("FROM ")]
        assert all(image.startswith("docker.io/library/python:") for image in images)
        assert 'ENTRYPOINT ["ptystream"]' in lines
        assert "STOPSIGNAL SIGTERM" in lines
        assert command_of(name)[:3] == ["demo", "--no-browser", "--frames"]


def command_of(name: str) -> list[str]:
    """What a container does where nothing else is asked."""
    (line,) = (line for line in (DEPLOY / name).read_text().splitlines() if line.startswith("CMD "))
    told: list[str] = json.loads(line.removeprefix("CMD "))
    return told


def test_the_compose_file_names_what_is_there() -> None:
    composed = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    assert set(composed["services"]) == {"simulator", "session", "viewer", "prometheus", "grafana"}
    for service in composed["services"].values():
        assert service["image"] == "ptystream" or service["image"].startswith(("docker.io/prom/", "docker.io/grafana/"))
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in composed["volumes"]
    build = composed["services"]["session"]["build"]
    assert ((DEPLOY / build["context"]) / build["dockerfile"]).exists()


def test_docker_compose_agrees(require: Callable[[str, bool], None]) -> None:
    found = shutil.which("docker")
    there = found is not None and subprocess.run([found, "compose", "version"], capture_output=True).returncode == 0
    require("docker compose", there)
    done = subprocess.run(["docker", "compose", "-f", "compose.yml", "config", "-q"], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_session_of_the_compose_file_fits_its_simulator_and_its_neighbours() -> None:
    configuration = load(str(DEPLOY / "compose" / "session.yaml"))
    (scan,) = configuration.scans
    geometry = Beamline().geometry()
    assert {name: getattr(scan.data.parameters, name) for name in geometry} == pytest.approx(geometry)
    assert scan.positions is not None and scan.positions.parameters.samples_per_frame == Beamline().samples_per_frame
    composed = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]
    assert f"--frames-address={scan.data.parameters.address}" in composed["simulator"]["command"]
    assert f"--positions-address={scan.positions.parameters.address}" in composed["simulator"]["command"]
    assert {word.split("=")[0] for word in composed["simulator"]["command"][1:]} <= options_of("simulate")
    io = configuration.root.io
    assert io.publish.address in composed["viewer"]["command"]
    assert f":{io.metrics.port}/healthz" in composed["session"]["healthcheck"]["test"][-1]
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"127.0.0.1:{io.metrics.port}"]
    assert scraped["job_name"] == "ptystream"


@pytest.mark.parametrize("name", ["ptystream@.service", "ptystream-view@.service"])
def test_the_units_are_sound(name: str, tmp_path: Path, require: Callable[[str, bool], None]) -> None:
    text = (DEPLOY / "systemd" / name).read_text()
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["Restart"] in ("on-failure", "always")
    if name == "ptystream@.service":
        assert (service["Type"], service["KillSignal"]) == ("notify", "SIGTERM")
        assert int(service["TimeoutStopSec"]) >= 300 and int(service["WatchdogSec"]) > 2
    words = service["ExecStart"].split()
    assert {word for word in words if word.startswith("--")} <= options_of(words[1])
    require("systemd-analyze", shutil.which("systemd-analyze") is not None)
    (tmp_path / "ptystream@.service").write_text((DEPLOY / "systemd" / "ptystream@.service").read_text())
    for file in {tmp_path / name, tmp_path / "ptystream@.service"}:
        there = (DEPLOY / "systemd" / file.name).read_text()
        file.write_text(there.replace("/opt/ptystream/bin/ptystream", shutil.which("true") or "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True)
    about = [line for line in done.stderr.splitlines() if "ptystream" in line]
    assert (done.returncode, about) == (0, [])


def options_of(command: str) -> set[str]:
    """The options of one of our commands."""
    found = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return {name for option in found.params for name in option.opts}


@pytest.mark.parametrize("name", ["live.sbatch", "mpirun.sh"])
def test_the_scripts_are_sound(name: str) -> None:
    script = DEPLOY / "slurm" / name
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode != 0
    assert "CONFIG" in done.stderr  # what is missing is said
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.slow
def test_the_scripts_start_the_ranks_they_are_asked_for(tmp_path: Path) -> None:
    said = tmp_path / "said"
    for name in ("ptystream", "srun", "mpirun"):
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {said}\n')
        (tmp_path / name).chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PTYSTREAM": str(tmp_path / "ptystream"), "USER": "u"}
    subprocess.run(["bash", str(DEPLOY / "slurm" / "mpirun.sh"), "c.yaml", "4"], env=path, check=True)
    subprocess.run(["bash", str(DEPLOY / "slurm" / "live.sbatch")], env=path | {"CONFIG": "c.yaml"}, check=True)
    mpirun, check, srun = said.read_text().splitlines()
    assert mpirun == f"mpirun -n 4 {tmp_path}/ptystream live c.yaml"
    assert check == "ptystream check c.yaml"
    assert srun.endswith(f"{tmp_path}/ptystream live c.yaml") and "--kill-on-bad-exit=1" in srun


@pytest.mark.slow
def test_the_container_command_runs_from_the_wheel_alone(tmp_path: Path) -> None:
    """As the Containerfile does it: the wheel is built, put into an empty environment, and its command is run there.

    The dependencies come from this environment, by path: an index may be out of reach.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    root = shutil.copytree(DEPLOY.parent, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "results", "tests"))
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root)]
    done = subprocess.run(built, capture_output=True, text=True, timeout=240)
    if "setuptools" in done.stderr and done.returncode != 0:
        built.remove("--no-build-isolation")
        done = subprocess.run(built, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("ptystream-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    into = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(into, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for place in sysconfig.get_path("purelib"), sysconfig.get_path("platlib"):
        (packages / "dependencies.pth").write_text(f"{place}\n")
    asked = [str(tmp_path / "venv" / "bin" / "ptystream"), *command_of("Containerfile")]
    where = subprocess.run(
        [str(python), "-P", "-c", "import ptystream; print(ptystream.__file__)"], capture_output=True, text=True
    )
    assert where.stdout.startswith(str(tmp_path / "venv")), where
    data = tmp_path / "data"
    data.mkdir()
    done = subprocess.run(asked, cwd=data, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (data / "results" / "demo" / "demo.ptyr").exists()


def test_the_viewer_of_a_unit_may_be_steered_by_where_the_operator_says_so() -> None:
    """By options that the command has, from the file that the unit reads; the tokens lie where it may write."""
    text = (DEPLOY / "systemd" / "ptystream-view@.service").read_text()
    (given,) = (line.split("OPTIONS=")[1] for line in text.splitlines() if line.startswith("# OPTIONS="))
    words = given.split()
    assert {"--steer", "--tokens"} <= {word for word in words if word.startswith("--")} <= options_of("view")
    assert words[words.index("--tokens") + 1].startswith("/var/lib/ptystream/") and "StateDirectory=ptystream\n" in text
    assert "--port ${PORT} $OPTIONS\n" in text and "EnvironmentFile=-/etc/ptystream/%i.env\n" in text
