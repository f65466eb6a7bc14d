"""What a session can be asked. Each method is an action of the steering socket, by its name, with its arguments."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

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
        return self._tree().described() if described else self._tree().steerable()

    @action()
    def set(self, path: str, value: Any) -> dict[str, Any]:
        """Change a parameter, for the runs under way and those to come; answers what it was and what it is."""
        tree = self._tree()
        change = tree.set(path, value)
        try:
            self._session.steer(change.path, change.value, change.before, ASKING.get())
        except BaseException:
            tree.set(path, change.before)
            raise
        return {"path": change.path, "before": change.before, "value": change.value}

    @action()
    def restart(self) -> None:
        """Take the starting probe again, and the exit waves as probe × object; the object stays."""
        run = self._session.current
        if run is None or run.engine is None:
            raise Refused("restart", None, "no engine is at work")
        run.apply({"do": "restart"})

    def _tree(self) -> Tree:
        configuration = self._session.plan.configuration
        if configuration is None:
            raise Refused("get", None, "this session was made without a configuration")
        return Tree(configuration)

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
        self._session.end_scan(run, reason[:200])
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
