"""A reconstruction from a script: what a ptypy user types, from parameters to arrays; and all that `io` and the root promise."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from memory import Memory, messages
from problems import BEAM, GEOMETRY

import ptystream
from ptystream import Param, Ptycho
from ptystream.params.errors import ConfigurationError
from ptystream.session import SessionError
from ptystream.stopwatch import PARTS
from ptystream.storage import ptyr
from ptystream.transport import Message


def parameters(home: Path, *scans: str, **engines: dict[str, Any]) -> Param:
    """A whole configuration, as a script has it; iterations begin when all frames are there, so that bits repeat."""
    p = Param(run="t", threads=1, min_frames_for_recon=10 * BEAM.frames)
    p.io.home = str(home)
    p.io.rfile = "%(run)s.ptyr"
    for label in scans or ("MF",):
        p.scans[label] = Param(name="BlockFull")
        p.scans[label].data = Param(name="ZmqScan", shape=BEAM.side, **GEOMETRY)
        p.scans[label].data.positions.name = "ZmqScan"
        p.scans[label].illumination.aperture.size = 4e-7
    for label, given in (engines or {"e": {"numiter": 5}}).items():
        p.engines[label] = Param({"name": "DM", **given})
    return p


def sources(*scans: str, kind: Any = Memory) -> dict[str, Any]:
    """The small scan for each label."""
    made = {}
    for label in scans or ("MF",):
        frames, places = messages(f"of {label}")
        made |= {f"{label}/data": kind(f"{label}/data", frames), f"{label}/positions": kind(f"{label}/positions", places)}
    return made


def test_a_script_ends_with_arrays(tmp_path: Path) -> None:
    P = Ptycho(parameters(tmp_path, e={"numiter": 30}), transports=sources())
    with pytest.raises(RuntimeError, match=r"call run\(\)"):
        P.probe  # noqa: B018
    assert P.run() is P
    assert P.results == [tmp_path / "t.ptyr"]
    saved = ptyr.read(P.results[0])
    name = "SMFG00"
    assert list(P.probe) == list(P.obj.storages) == [name]
    np.testing.assert_array_equal(P.probe.storages[name].data, saved.probe[name].data)
    np.testing.assert_array_equal(P.obj.S[name].data, saved.object[name].data)
    np.testing.assert_array_equal(np.asarray(P.obj), P.obj[name])
    assert P.probe[name].shape == (1, BEAM.side, BEAM.side)
    np.testing.assert_allclose(P.probe[name].psize, BEAM.pixel_m)
    y, x = P.obj[name].grids()
    inside = P.obj[name].center.astype(int)
    assert y.shape == P.obj[name].shape
    assert abs(y[0, inside[0], inside[1]]) < 1e-15
    assert abs(x[0, inside[0], inside[1]]) < 1e-15
    assert x[0, 0, 1] - x[0, 0, 0] == pytest.approx(BEAM.pixel_m)
    assert len(P.runtime.iter_info) == 30
    assert P.runtime.iter_info[-1].iterations == 30
    assert P.runtime.iter_info[-1].engine == "DM"
    assert P.runtime.run == "t"
    assert P.runtime.start <= P.runtime.stop <= time.time()
    assert P.misfit[-1, 1] < 0.1 * P.misfit[0, 1]
    assert P.positions.shape == (BEAM.frames, 2)
    assert P.p.scans.MF.data.shape == BEAM.side


@pytest.mark.slow
def test_the_same_script_in_other_words_gives_the_same_bits(tmp_path: Path) -> None:
    first = Ptycho(parameters(tmp_path / "a"), transports=sources()).run()
    plain = json.loads(json.dumps(parameters(tmp_path / "b")))
    second = Ptycho(plain, level=5, transports=sources())
    file = tmp_path / "p.json"
    file.write_text(json.dumps(parameters(tmp_path / "c")))
    third = Ptycho(file, transports=sources(), run="named", verbose_level=0).run()
    assert third.results == [tmp_path / "c" / "named.ptyr"]
    for other in (second, third):
        np.testing.assert_array_equal(first.obj.data, other.obj.data)


def test_a_result_comes_back_and_is_saved_again(tmp_path: Path) -> None:
    P = Ptycho(parameters(tmp_path), transports=sources()).run()
    again = Ptycho.load_run(P.results[0])
    np.testing.assert_array_equal(again.obj.data, P.obj.data)
    np.testing.assert_array_equal(again.probe["SMFG00"].psize, P.probe["SMFG00"].psize)
    assert again.runtime.iter_info[-1].iterations == 5
    np.testing.assert_array_equal(ptyr.read(P.save_run(tmp_path / "b" / "copy.ptyr")).object["SMFG00"].data, P.obj.data)
    again.configuration.root.io.autoplot.layout = "minimal"
    for layout, size in ((None, (484, 990)), ("jupyter", (418, 1210))):
        assert again.plot_overview(tmp_path / "o.png", layout) is not None
        assert imread(tmp_path / "o.png").shape[:2] == size


def test_sizes_are_printed_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    P = Ptycho(parameters(tmp_path), transports=sources()).run()
    capsys.readouterr()
    P.print_stats()
    said = capsys.readouterr().out
    assert f"probe SMFG00: 1 × {BEAM.side} × {BEAM.side} complex64" in said
    assert f"{BEAM.frames} frames, 1 pods each" in said


def test_parameters_that_are_wrong_are_told_before_anything_runs(tmp_path: Path) -> None:
    p = parameters(tmp_path, e={"numitr": 5})
    p.scans.MF.data.energi = 7
    with pytest.raises(ConfigurationError, match="did you mean 'energy'") as caught:
        Ptycho(p)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_below_level_5_nothing_runs(tmp_path: Path, level: int) -> None:
    given = sources()
    assert repr(Ptycho(parameters(tmp_path), level=level, transports=given)) == "<Ptycho t: not run>"
    assert given["MF/data"].acknowledged == 0
    assert not any(tmp_path.iterdir())


def test_several_scans_and_engines_run_in_one_and_templates_do_not(tmp_path: Path) -> None:
    p = parameters(tmp_path, "upper", "lower", e10={"numiter": 4}, e2={"numiter": 3, "alpha": 0.5})
    p.engines.common = Param(numiter=100)
    p.scans.common = Param(propagation="farfield")
    P = Ptycho(p, transports=sources("upper", "lower")).run()
    assert set(P.obj) == {"SupperG00", "SlowerG00"}
    with pytest.raises(ValueError, match="name one of SupperG00, SlowerG00"):
        P.obj.data  # noqa: B018
    assert P.runtime.ledger["used"] == 2 * BEAM.frames
    steps = [entry for entry in ptyr.read(P.results[0]).schedule if entry["do"] == "engine"]
    assert [(s["label"], s["parameters"]["alpha"]) for s in steps] == [("e10", 1.0), ("e2", 0.5)]  # sorted as text, as in ptypy
    assert [info.numiter for info in P.runtime.iter_info] == [4] * 4 + [3] * 3


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["all", *PARTS])
def test_the_benchmark_says_where_the_time_went(tmp_path: Path, wanted: str) -> None:
    p = parameters(tmp_path, a={"numiter": 5}, b={"numiter": 5})
    p.io.benchmark = wanted
    P = Ptycho(p, transports=sources()).run()
    seconds = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(seconds) == (list(PARTS) if wanted == "all" else [wanted])
    assert all(spent > 0 for spent in seconds.values())
    if wanted in ("all", "engine_iterate"):
        assert seconds["engine_iterate"] > 0.999 * sum(i.duration for i in P.runtime.iter_info)


def test_without_it_there_is_no_benchmark(tmp_path: Path) -> None:
    Ptycho(parameters(tmp_path), transports=sources()).run()
    assert {f.name for f in tmp_path.iterdir()} == {"t.ptyr", "recordings"}


LEVELS = {"CRITICAL": 0, "ERROR": 0, "INTERACTIVE": 0, "WARNING": 0, "INFO": 1, "INSPECT": 2, "DEBUG": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEVELS)
def test_a_level_says_what_its_name_promises(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    p = parameters(tmp_path)
    p.verbose_level = name
    before = logging.getLogger("ptystream").level
    Ptycho(p, transports=sources()).run()
    said = caplog.text
    assert ("iteration 5 (5 of all engines)" in said) == (LEVELS[name] >= 1)
    assert ("object SMFG00: 1 ×" in said) == (LEVELS[name] >= 2)
    assert ("acquisition 'of MF'" in said) == (LEVELS[name] >= 1)
    printed = capsys.readouterr().err
    assert "Ultramicroscopy 109, 338 (2009)" in printed  # at every level
    assert ("publishing on" in printed) == (name not in ("CRITICAL", "ERROR"))
    assert logging.getLogger("ptystream").level == before


@pytest.mark.slow
def test_a_script_without_a_log_of_its_own_gets_one(tmp_path: Path) -> None:
    code = f"""
    import sys, logging
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from test_ptycho import *
    p = parameters(Path({str(tmp_path)!r}))
    p.verbose_level = 3
    del p.run
    P = Ptycho(p, transports=sources()).run()
    assert not logging.getLogger("ptystream").handlers
    print(P)
    """
    script = tmp_path / "my.scan.py"
    script.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=True)
    assert re.search(r"INFO my: DM: iteration 5", done.stderr)
    assert done.stdout.strip() == "<Ptycho my: finished>"  # the script's name up to its first dot
    assert (tmp_path / "my.ptyr").exists()


class Slow(Memory):
    """Gives out its messages one after another and does not end."""

    def receive(self, timeout_s: float) -> Message | None:
        parts = next(self._messages, None)
        if parts is None:
            threading.Event().wait(timeout_s)
            return None
        return Message(1, self.channel, tuple(parts))


def unending() -> dict[str, Any]:
    """The scan without its ends."""
    frames, places = messages()
    return {"MF/data": Slow("MF/data", frames[:-1]), "MF/positions": Slow("MF/positions", places[:-1])}


def test_ctrl_c_saves_what_is_there_and_ends_the_script(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    p = parameters(tmp_path)
    p.min_frames_for_recon = 20
    P = Ptycho(p, transports=unending())

    def interrupt() -> None:
        while P._session is None or P._session.status()["iteration"] < 3 or P._session.status()["used"] < BEAM.frames:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        P.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert ptyr.read(P.results[0]).ledger["used"] == BEAM.frames
    assert P.obj.data.any()


def test_another_thread_stops_it_too(tmp_path: Path) -> None:
    p = parameters(tmp_path)
    p.min_frames_for_recon = 20
    P = Ptycho(p, transports=unending())
    ran = threading.Thread(target=P.run)
    ran.start()
    while P._session is None or P._session.status()["iteration"] < 3:
        time.sleep(0.05)
    assert P.probe.data.any()  # while it runs
    P.stop()
    ran.join(60)
    assert not ran.is_alive()
    assert P.results


def test_a_source_that_dies_is_an_error_of_the_script(tmp_path: Path) -> None:
    given = sources()
    given["MF/data"] = Memory("MF/data", messages()[0][:40], OSError("the cable is out"))
    with pytest.raises(SessionError, match="the cable is out"):
        Ptycho(parameters(tmp_path), transports=given).run()


def test_a_scan_without_a_usable_frame_is_an_error_that_says_what_came(tmp_path: Path) -> None:
    given = sources()
    first, *_, last = messages("of MF")[1]
    given["MF/positions"] = Memory("MF/positions", [first, last])
    with pytest.raises(SessionError, match=rf"t: nothing was reconstructed: .*{BEAM.frames} received"):
        Ptycho(parameters(tmp_path), transports=given).run()
    nothing = {name: Memory(name, []) for name in given}
    with pytest.raises(SessionError, match="no frame came"):
        Ptycho(parameters(tmp_path), transports=nothing).run()


def test_a_center_outside_the_frames_is_told_at_the_first_of_them_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = parameters(tmp_path)
    given.scans.MF.data.center = (500.0, 12.0)
    said = rf"scans\.MF\.data\.center: \(500\.0, 12\.0\): lies outside the frames of \({BEAM.side}, {BEAM.side}\) pixels; give"
    with pytest.raises(SessionError, match=rf"nothing was reconstructed: {said}.* received"):
        Ptycho(given, transports=sources()).run()
    told = [record.getMessage() for record in caplog.records if re.search(said, record.getMessage())]
    assert "the first frame" in told[0]
    assert "without a usable frame" in told[-1]


def test_log_and_progress_line_show_the_cost_of_an_engine_without_a_fourier_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    p = parameters(tmp_path, a={"numiter": 2}, b={"name": "ML", "numiter": 2})
    p.verbose_level = "INFO"
    P = Ptycho(p, transports=sources()).run()
    lines = [r.getMessage() for r in caplog.records if ": iteration " in r.getMessage()]
    assert "fourier error" in lines[0]
    assert P._session is not None
    cost = P.runtime.iter_info[-1]["error"][1]
    assert P._session.status()["error"] == ("cost", cost)
    assert cost > 0
    assert f"cost {cost:.4g}" in lines[-1]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, ptystream; print([m for m in ('numpy', 'pydantic', 'zmq', 'numba') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    assert ptystream.Session.__name__ == "Session"
    with pytest.raises(AttributeError, match="Ptyco"):
        ptystream.Ptyco  # noqa: B018


# ---------------------------------------------------------------------- plots


def plots(home: Path) -> list[str]:
    return sorted(str(f.relative_to(home)) for f in home.rglob("*.png"))


@pytest.mark.slow
def test_plots_are_dumped_at_their_interval_under_their_names(tmp_path: Path) -> None:
    p = parameters(tmp_path, a={"numiter": 6}, b={"numiter": 5})
    p.io.autoplot = Param(dump=True, threaded=False, interval=3, layout="minimal")
    Ptycho(p, transports=sources()).run()
    names = [f"plots/t/t_DM_{k:04d}.png" for k in (3, 6, 9, 11)]  # the last state is always drawn
    assert plots(tmp_path) == names
    assert imread(tmp_path / names[0]).shape[:2] == (484, 990)
    p.io.autoplot.imfile = "%(run)s-%(iteration)d.png"
    p.io.autoplot.layout = "jupyter"
    Ptycho(p, transports=sources()).run()
    assert {f.name for f in tmp_path.glob("*.png")} == {"t-3.png", "t-6.png", "t-5.png"}  # the second engine begins anew
    assert imread(tmp_path / "t-5.png").shape[:2] == (418, 1210)


@pytest.mark.slow
@pytest.mark.parametrize(
    "off", [{"active": False}, {"interval": 0}, {"interval": -1}, {"dump": False}], ids=["active", "0", "-1", "dump"]
)
def test_plots_that_are_off_are_not_drawn(tmp_path: Path, off: dict[str, Any]) -> None:
    p = parameters(tmp_path)
    p.io.autoplot = Param({"dump": True, "threaded": False, **off})
    Ptycho(p, transports=sources()).run()
    assert plots(tmp_path) == []


@pytest.mark.slow
def test_a_process_of_its_own_draws_the_newest_and_the_last(tmp_path: Path) -> None:
    p = parameters(tmp_path, e={"numiter": 40})
    p.io.autoplot = Param(dump=True, layout="minimal")
    started = time.monotonic()
    P = Ptycho(p, transports=sources()).run()
    drawn = plots(tmp_path)
    assert drawn[-1] == "plots/t/t_DM_0040.png"
    assert 1 <= len(drawn) < 40  # none waited for
    spent = sum(i.duration for i in P.runtime.iter_info)
    assert spent < time.monotonic() - started


@pytest.mark.slow
def test_a_movie_is_made_of_the_plots_and_they_are_kept(tmp_path: Path) -> None:
    p = parameters(tmp_path)
    p.io.autoplot = Param(make_movie=True, threaded=False, interval=2, layout="minimal")
    Ptycho(p, transports=sources()).run()
    assert len(plots(tmp_path)) == 3
    (movie,) = [f for f in (tmp_path / "plots" / "t").iterdir() if f.suffix in (".mp4", ".gif")]
    assert movie.stem == "t"
    assert movie.stat().st_size > 1000


@pytest.mark.slow
def test_a_drawing_that_fails_is_told_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plots").write_text("no folder")
    for threaded in (False, True):
        p = parameters(tmp_path / str(threaded))
        p.io.autoplot = Param(dump=True, threaded=threaded, imfile=str(tmp_path / "plots" / "a.png"))
        caplog.clear()
        P = Ptycho(p, transports=sources()).run()
        assert P.results
        assert caplog.text.count("drawing failed, no more plots") == 1


@pytest.mark.slow
def test_a_notebook_shows_the_newest_plot_below_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []

    class Cell:
        def __call__(self, png: bytes) -> None:
            shown.append(png)

        def close(self) -> None:
            pass

    monkeypatch.setattr("ptystream.launch.display_in_notebook", Cell)
    for threaded in (False, True):
        shown.clear()
        p = parameters(tmp_path)
        p.io.autoplot = Param(threaded=threaded, interval=4, layout="jupyter")
        Ptycho(p, transports=sources()).run()
        assert len(shown) == 2 if not threaded else 1 <= len(shown) <= 2
        assert all(png.startswith(b"\x89PNG") for png in shown)
    assert plots(tmp_path) == []
