"""The dumps of a configuration: how they are made, and which one a run of an interrupted session goes on from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ptystream.autosave import Autosave
from ptystream.checkpoint import Checkpoint, checkpoint_of, dumps, extras, newest, session_of
from ptystream.loop import Loop
from ptystream.params.load import Configuration
from ptystream.recording import Recorder, Recording
from ptystream.results import as_json, changed_files, effective, file_name, versions
from ptystream.run import Run
from ptystream.storage import ptyr
from ptystream.storage.h5 import H5Error

log = logging.getLogger(__name__)


class Dumping:
    """The dumps of a configuration: how they are made, and which one a run goes on from.

    A dump belongs to the session whose recording has its frames; `recorder` writes or continues that.
    """

    def __init__(self, configuration: Configuration, recorder: Recorder | None) -> None:
        self._configuration, self._recorder = configuration, recorder
        self._p, self._home = configuration.root.io.autosave, Path(configuration.root.io.home)
        self._session = "" if recorder is None else str(Recording(recorder.path).metadata.get("session", ""))
        file_name(self._p.rfile, configuration.name)  # a pattern that cannot be filled in is told now
        self.autosave = Autosave(self._p.interval, self._p.keep, self._dump)

    def _dump(self, run: Run, loop: Loop) -> Callable[[], Path]:
        """Copies now what is to be written; the rest is for the thread that writes."""
        engine, entry, configuration = run.engine, run.engine_entry, self._configuration
        assert engine is not None and entry is not None and run.reconstruction is not None
        held = engine.snapshot()
        infos, errors, misfits = list(run.iter_info), list(run.errors), list(run.misfit)
        pixel = np.asarray(next(iter(held.objects.values())).pixel_size_m or (1.0, 1.0))
        places, ledger, schedule = run.positions()[run.rows()] * pixel, run.ledger(), run.schedule.to_list()
        ledger_frames, decisions = run.ledger_map(), {label: dict(held) for label, held in run.decisions.items()}
        rows, known = run.reconstruction.pods.state(), {label: scan.known() for label, scan in run.scans.items()}
        state, policy, acquisitions = engine.state(), loop.state(), list(run.acquisitions.values())
        path = self._home / file_name(self._p.rfile, run.name, infos[-1] | run.series.keys())

        def write() -> Path:
            if self._recorder is not None:
                self._recorder.flush()  # what a dump has used must be there to be fed again
            result = ptyr.Result(
                run=run.name,
                probe=held.probes,
                object=held.objects,
                parameters=configuration.given,
                iter_info=infos[-1:],
                positions_m=places,
                errors=np.concatenate(errors),
                misfit=np.concatenate(misfits),
                ledger=ledger,
                ledger_frames=ledger_frames,
                schedule=schedule,
                decisions=decisions,
                versions=versions(),
                started=run.started,
                used=effective(configuration),
                checkpoint=extras(
                    infos,
                    acquisitions,
                    session=self._session,
                    engine=entry.label,
                    state=dict(state),
                    loop=policy,
                    rows=rows,
                    known=known,
                ),
            )
            return ptyr.write(path, result, "dump")

        return write

    def checkpoint(self, run: str) -> Checkpoint | None:
        """What a run of an interrupted session goes on from; None where it begins anew, and the log says why."""
        found = newest(self._home, self._p.rfile, run, self._session) if self._session else None
        if found is None:
            log.info("%s: no dump of the interrupted session: beginning with its first frame", run)
            return None
        file, result = found
        self.autosave.found(run, reversed(self._of_session(run)))
        now, then = (as_json(c.get("scans") or {}) for c in (self._configuration.given, result.parameters))
        if json.loads(now) != json.loads(then):
            log.warning("%s: begins anew: `scans` in the configuration is not what it was in %s", run, file)
            return None
        if others := self._changed_files():
            log.warning("%s: begins anew: frames in %s were cut by what is another now: %s", run, file, "; ".join(others))
            return None
        try:
            checkpoint = checkpoint_of(result)
        except H5Error as error:
            log.warning("%s: begins anew: %s", run, error)
            return None
        appended = [entry["label"] for entry in checkpoint.schedule if entry["do"] == "append"]
        if checkpoint.engine not in [*appended, *(e.label for e in self._configuration.engines)]:
            log.warning("%s: begins anew: engine %r of %s is not in the configuration", run, checkpoint.engine, file)
            return None
        log.info("%s: %s: going on from there", run, file)
        return checkpoint

    def _changed_files(self) -> list[str]:
        """What the recording was begun with, and is another now."""
        if self._recorder is None:
            return []
        return changed_files(self._configuration, Recording(self._recorder.path).metadata.get("contents") or {})

    def _of_session(self, run: str) -> list[Path]:
        """Dumps of a run in this session, the newest first."""
        return [file for file in dumps(self._home, self._p.rfile, run) if session_of(file) == self._session]
