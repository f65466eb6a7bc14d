"""`ptystream verify`: a live result is repeated to the same bits from its recording, and what is not as promised is found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults as scans
import numpy as np
import pytest

from ptystream.faults import Faults
from ptystream.metrics import Metrics
from ptystream.params.load import load
from ptystream.plan import make_plan
from ptystream.playback import Playback
from ptystream.recording import Recorder, Recording
from ptystream.session import Session
from ptystream.storage import ptyr
from ptystream.verify import FACTOR, VerifyError, changed, distance, overlap, verify


def live(folder: Path, faults: Faults, **more: Any) -> tuple[ptyr.Result, Recording, Path]:
    """A scan of a second, reconstructed while it comes; what came is recorded."""
    given = scans.configuration(folder, scans.Case("", faults))
    given |= {"min_frames_for_recon": 24, "live": {"restart_probe": True}} | more
    given["scans"]["s"]["data"] |= {"hot_pixels": 30.0}
    configuration = load(given)
    recorder = Recorder(folder / "live.ptyrec")
    playback = Playback(str(scans.record(folder / "r.ptyrec")), 0.5, faults)
    plan = make_plan(configuration, transports=playback.transports(configuration), recorder=recorder)
    plan.warm_up()  # otherwise the scan is over before the engine is compiled
    session = Session(plan, metrics=Metrics(), tap=recorder)
    results = session.run()
    recorder.close(finished=True)
    return ptyr.read(results[-1]), Recording(folder / "live.ptyrec"), results[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ptyr.Result, Recording, Path]:
    faults = Faults(seed=2, drop=0.03, duplicate=0.05, reorder=0.1, jitter=0.02, late=0.15)
    return live(tmp_path_factory.mktemp("live"), faults)


@pytest.mark.slow
def test_a_live_result_with_late_and_lost_messages_is_repeated_to_the_same_bits(made: Any) -> None:
    result, recording, _ = made
    takes = [entry for entry in result.schedule if entry["do"] == "take"]
    assert len(takes) > 3, "the scan was to come while it was reconstructed"
    found = verify(result, recording)
    assert found.same_bits and found.must_be_same and found.good
    assert found.iterations == sum(info["count"] for info in result.iter_info)
    assert found.offline is not None and found.wander is not None
    assert found.offline <= FACTOR * found.wander
    assert "the same bits" in "\n".join(found.lines()) and found.lines()[-1] == "verified"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ML", "EPIE", "RAAR"])
def test_the_other_engines_repeat_too(engine: str, tmp_path: Path) -> None:
    result, recording, _ = live(tmp_path, Faults(late=0.1), engines={"e": {"name": engine, "numiter": 10}})
    assert verify(result, recording, offline=False).same_bits


@pytest.mark.slow
def test_one_changed_pixel_is_found(made: Any) -> None:
    result, recording, _ = made
    name, storage = next(iter(result.object.items()))
    data = storage.data.copy()
    data[0, 30, 30] = np.nextafter(data[0, 30, 30].real, np.float32(9)) + 1j * data[0, 30, 30].imag
    touched = replace(result, object={name: replace(storage, data=data)})
    found = verify(touched, recording, offline=False)
    assert found.changed == {f"object {name}": 1}
    assert not found.good and "MUST BE THE SAME" in "\n".join(found.lines())
    elsewhere = replace(touched, versions={**result.versions, "numpy": "1.0"})
    found = verify(elsewhere, recording, offline=False)
    assert found.differing.keys() == {"numpy"}
    assert found.good and "numpy was 1.0" in "\n".join(found.lines())
    wrong = replace(elsewhere, object={name: replace(storage, data=np.flip(storage.data, -1).copy())})
    assert not verify(wrong, recording, offline=False).good


def test_a_schedule_that_was_changed_is_found(made: Any) -> None:
    result, recording, _ = made
    schedule = copy.deepcopy(list(result.schedule))
    longest = max((e for e in schedule if e["do"] == "iterate"), key=lambda e: e.get("times", 1))
    longest["times"] -= 1
    assert not verify(replace(result, schedule=schedule), recording, offline=False).good


@pytest.mark.slow
def test_the_second_of_two_scans_of_one_name_is_found_in_their_recording(tmp_path: Path) -> None:
    first = Recording(scans.record(tmp_path / "one.ptyrec"))
    recorder = Recorder(tmp_path / "two.ptyrec")
    for turn in range(2):
        for message in first:
            recorder.write(replace(message, arrival_ns=message.arrival_ns + turn * 10**10, parts=message.parts[1:]))
    recorder.close()
    given = scans.configuration(tmp_path, scans.Case("", Faults())) | {"live": {"runs": 2}}
    configuration = load(given)
    playback = Playback(str(tmp_path / "two.ptyrec"))
    session = Session(make_plan(configuration, transports=playback.transports(configuration)), metrics=Metrics())
    results = [ptyr.read(path) for path in session.run()]
    assert [r.scans["s"]["acquisition"] for r in results] == [["a", 0], ["a", 1]]
    for result in results:
        assert verify(result, Recording(tmp_path / "two.ptyrec"), offline=False).same_bits


def test_what_cannot_be_verified_is_refused(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptystream.run.COMING_S", 1.0)
    result, recording, _ = made
    with pytest.raises(VerifyError, match="no schedule"):
        verify(replace(result, schedule=[]), recording)
    Recorder(tmp_path / "empty").close()
    with pytest.raises(VerifyError, match="nothing of the run is in the recording"):
        verify(result, Recording(tmp_path / "empty"))
    half = Recorder(tmp_path / "half")
    for k, message in enumerate(recording):
        if k < 100:
            half.write(message)
    half.close()
    with pytest.raises(VerifyError, match="did not come"):
        verify(result, Recording(tmp_path / "half"))


def test_distances_are_those_of_the_common_part(made: Any) -> None:
    result, _, _ = made
    (storage,) = result.object.values()
    y, x = storage.offset
    part = replace(storage, data=storage.data[:, 3:, :-2] * np.exp(0.7j), offset=(y + 3, x))
    a, b, where = overlap(storage, part)
    assert a.shape == b.shape == part.data.shape and where[0].start == 3
    assert distance(result.object, dict.fromkeys(result.object, part), result.coverage) < 1e-4
    assert changed(storage, storage) == 0 and changed(storage, part) == storage.data.size


@pytest.mark.slow
def test_the_command_says_it_and_draws_it(made: Any, tmp_path: Path) -> None:
    _, recording, path = made
    command = [sys.executable, "-P", "-m", "ptystream", "verify", str(path), str(recording.path)]
    done = subprocess.run([*command, "--picture", str(tmp_path / "d.png")], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2] == "verified"
    assert (tmp_path / "d.png").stat().st_size > 10_000
    other = json.loads(json.dumps(ptyr.read(path).parameters, default=ptyr.plain))
    other["engines"]["e"]["probe_update_start"] = 7
    config = tmp_path / "other.json"
    config.write_text(json.dumps(other))
    done = subprocess.run([*command, "--no-offline", "--config", str(config)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "NOT VERIFIED" in done.stdout
