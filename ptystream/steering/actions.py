"""What a session can be asked. Each method is an action of the steering socket, by its name, with its arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptystream.params.errors import ConfigurationError
from ptystream.params.home import home, located
from ptystream.params.load import Configuration, EngineConfiguration, check_engine
from ptystream.plan import unfit
from ptystream.recutting import PATH, brief
from ptystream.run import Run
from ptystream.scan.cut import CutError
from ptystream.steering.desk import ASKING, Later, Refused, action, actions_of
from ptystream.steering.looking import Looked, ledger_of, scan_of
from ptystream.steering.tree import Tree

if TYPE_CHECKING:
    from ptystream.session import Session

log = logging.getLogger(__name__)


class Actions:
    """The actions of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @action("viewer", at_once=True, changes=False)
    def actions(self) -> list[dict[str, Any]]:
        """What can be asked, with arguments and who may."""
        return [found.described() for found in actions_of(self).values()]

    @action("viewer", at_once=True, changes=False)
    def status(self) -> dict[str, Any]:
        """Numbers of the run that is reconstructed: state, frames, iteration, error, age; and the results so far."""
        session = self._session
        more = {"paused": session.paused, "finished": session.finished, "results": [str(path) for path in session.results]}
        return session.status() | more

    @action("viewer", at_once=True, changes=False)
    def frames(self) -> list[dict[str, Any]]:
        """Files into which frames are written (`io.frames`), the newest last: acquisition, path, dataset, how many."""
        files = self._session.frame_files
        if files is None:
            raise Refused("io.frames.active", False, "frames are not written to files: set it to true")
        return [file.told() for file in files.files()]

    @action("viewer", at_once=True, changes=False)
    def ledger(self, run: str = "", scan: str = "", first: int = 0) -> dict[str, Any]:
        """Every frame of a scan: number, state and position, as compact arrays. Nothing given: the first scan of the present run.
        Of more than a million frames those from record `first` on."""
        return ledger_of(*scan_of(self._session.run_of(run), scan), first)

    @action("viewer", changes=False)
    def frame(self, frame: int, run: str = "", scan: str = "") -> Later:
        """A frame by its number: its pattern, what the reconstruction makes of it, and what the ledger says of it."""
        return Later(Looked(*scan_of(self._session.run_of(run), scan), frame).told)

    @action("viewer", changes=False)
    def get(self, path: str = "") -> Any:
        """The value of a parameter in force, or of a branch: `live.latency`, `engines.engine00`; nothing: all."""
        return self._tree().get(path)

    @action("viewer", changes=False)
    def steerable(self, described: bool = False) -> Any:
        """Every parameter that may change while the session runs, with its value; `described`: and what it may be."""
        if described:
            return [{**entry, "value": brief(entry["value"])} for entry in self._tree().described()]
        return {path: brief(value) for path, value in self._tree().steerable().items()}

    @action()
    def set(self, path: str, value: Any) -> dict[str, Any]:
        """Change a parameter, for the runs under way and those to come; answers what it was, what it is, and what happens."""
        configuration, tree = self._configuration("set"), self._tree()
        with home(Path(configuration.root.io.home)):
            given = located(value) if isinstance(value, str) and path.endswith(".data.mask") else value
            change = tree.set(path, given)
            cut = PATH.fullmatch(path)
            if cut is not None and cut.group(2) == "center" and self._is_found(configuration, cut.group(1)):
                tree.set(path, change.before)
                raise Refused(path, value, "is found from the first frames: auto_center is true, or center null")
            kept, before = change.value, change.before
            if cut is not None and cut.group(2) == "mask":  # as it was given: arrays are for the frames
                kept, before = given, self._session.given(cut.group(1), "mask")
            try:
                told = self._session.steer(change.path, kept, before, ASKING.get())
            except BaseException as error:
                tree.set(path, change.before)
                if isinstance(error, CutError):
                    raise Refused(path, value, str(error)) from None
                raise
        return {"path": change.path, "before": brief(change.before), "value": brief(change.value), "happens": told}

    @staticmethod
    def _is_found(configuration: Configuration, label: str) -> bool:
        p = next(scan.data.parameters for scan in configuration.scans if scan.label == label)
        return bool(p.auto_center) or (p.auto_center is None and p.center is None)

    @action()
    def restart(self, anew: bool = False) -> None:
        """Take the starting probe again, and the exit waves as probe × object; the object stays. `anew`: nothing of it stays
        either, and the first engine begins."""
        self._session.restart(self._at_work("restart"), ASKING.get(), anew=anew)

    @action()
    def append(self, engine: str, parameters: dict[str, Any] | None = None) -> str:
        """Put an engine behind those of the present run: its name, or a label of `engines` in the configuration, and parameters.
        Returns its label."""
        run = self._session.current
        if run is None or run.state in ("finished", "failed"):
            raise Refused("append", engine, "no run is under way")
        return self._appended("append", run, engine, parameters, here=False)

    @action()
    def switch(self, engine: str | None = None, parameters: dict[str, Any] | None = None) -> str:
        """End the engine at work now, and go on with the next; or with another: the label of one of the run's, otherwise as for
        `append`. Returns the label of the one that follows."""
        run = self._at_work("switch")
        assert run.engine_entry is not None
        labels, now = [chosen.label for chosen in run.engines], run.engine_entry.label
        if engine is None:
            if now == labels[-1]:
                raise Refused("switch", None, f"no engine follows {now}: name one, or `end` the scan")
            label = labels[labels.index(now) + 1]
        elif engine in labels and not parameters:
            if engine == now:
                raise Refused("switch", engine, "is at work: `restart` has it begin again")
            label = engine
        else:
            label = self._appended("switch", run, engine, parameters, here=True)
        self._session.switch(run, label, ASKING.get())
        return label

    def _at_work(self, name: str) -> Run:
        run = self._session.current
        if run is None or run.engine is None:
            raise Refused(name, None, "no engine is at work")
        return run

    def _appended(self, name: str, run: Run, engine: str, parameters: dict[str, Any] | None, *, here: bool) -> str:
        """Put an engine among those of a run; returns its label."""
        taken, number = {chosen.label for chosen in run.engines}, 0
        while (label := f"added{number:02d}") in taken:
            number += 1
        configuration = self._configuration(name)
        templates = configuration.given.get("engines") or {}
        template = templates.get(engine) if isinstance(templates, Mapping) else None
        given = {**template, **(parameters or {})} if isinstance(template, Mapping) else {"name": engine, **(parameters or {})}
        if given.get("name") is None:
            raise Refused(f"{name}.parameters.name", None, f"engines.{engine} is a template without one: say which engine")
        try:
            with home(Path(configuration.root.io.home)):
                checked = check_engine(label, given)
            faults = list(unfit(replace(configuration, engines=(checked,))))
            if faults:
                raise ConfigurationError(faults)
            self._session.append(run, checked, ASKING.get(), here=here)
        except ConfigurationError as error:
            told = error.faults[0]
            path = told.path.removeprefix(f"engines.{label}").strip(".") or "engine"
            raise Refused(f"{name}.{path}", told.value, "; ".join([told.remedy, *map(str, error.faults[1:])])) from None
        except ValueError as error:
            raise Refused(name, engine, str(error)) from None
        return label

    def _tree(self) -> Tree:
        """What is in force, with the engines that were put behind those of the present run."""
        configuration = self._configuration("get")
        more = [
            EngineConfiguration(chosen.label, chosen.name, chosen.make, chosen.parameters.model_copy(deep=True))
            for chosen in self._session.appended()
        ]
        return Tree(replace(configuration, engines=(*configuration.engines, *more)))

    def _configuration(self, name: str) -> Configuration:
        configuration = self._session.plan.configuration
        if configuration is None:
            raise Refused(name, None, "this session was made without a configuration")
        return configuration

    @action(at_once=True)
    def pause(self) -> None:
        """Iterate no further until `resume`; what arrives is recorded and joined all the same."""
        self._session.pause()

    @action(at_once=True)
    def resume(self) -> None:
        """Go on after `pause`."""
        self._session.resume()

    @action(at_once=True)
    def stop(self) -> None:
        """End the session: what is there is saved."""
        self._session.stop()

    @action()
    def end(self, reason: str = "ended on request") -> str:
        """End the scan of the present run: its remaining iterations, its result, then the next one. Returns the run's name."""
        run = self._session.current
        if run is None or run.complete:
            raise Refused("end", None, "no scan is under way")
        told = reason[:200] if "request" in reason else f"{reason[:200]} (ended on request)"
        self._session.end_scan(run, told, ASKING.get())
        return run.name

    @action()
    def save(self) -> str:
        """Write the result of the present run as it is now; returns its path."""
        run = self._session.current
        if run is None or run.reconstruction is None or not run.frames:
            raise Refused("save", None, "nothing is reconstructed yet")
        path = self._session.plan.save(run)
        if path is None:
            raise Refused("io.rfile", None, "no file is written: give a pattern")
        return str(path)
