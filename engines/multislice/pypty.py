"""PyPty: everything that forms a pattern refined together by L-BFGS, through a specimen of several slices.

The mathematics stands in docs/explanation/multislice.md. An epoch is one step of the optimiser over all frames there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Progress
from ptystream.reconstruction import COLUMN, ROW, Reconstruction, Stack, Storage
from ptystream.scan.block import FrameStore
from ptystream.spread import mine

from ..backend import BACKENDS, Backend
from .beam import subscans
from .beginning import grown, objective_of, optics_of, quantities, slices_of, stack_of, waves_of
from .constraints import Constraints
from .descent import Descent
from .folding import fold
from .growth import carry, within
from .loss import Loss, Point
from .memory import History
from .objective import Batch
from .optics import band
from .page.scan import UNDOCUMENTED, described
from .parameters import PyPtyParameters
from .patterns import Patterns, PhasePlates
from .remembered import noted, remember
from .setting import Setting
from .standing import standing
from .terms import Terms
from .together import agreed, count, of_rank_0, rows_of
from .variables import Variables

SAME = 1e-4
"""Relative difference of two losses that may be rounding."""


class PyPty:
    """See the module."""

    Parameters = PyPtyParameters
    spreads: ClassVar[bool] = True
    takes_volumes: ClassVar[bool] = False
    takes_pad: ClassVar[bool] = True
    takes_signals: ClassVar[bool] = True
    describes_scan = staticmethod(described)
    undocumented: ClassVar[Mapping[str, str]] = UNDOCUMENTED

    def __init__(self, parameters: Any) -> None:
        self.p = parameters

    # ------------------------------------------------------------------ the contract

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ptystream.engine.Engine.start`. Raises `ValueError` for what the engine cannot take."""
        self._geometry = next(iter(reconstruction.geometries.values()), None)
        self.p = standing(self.p, self._geometry)
        double = self.p.default_dtype == "double"
        self.on: Backend = BACKENDS[context.device](replace(context, precision=self.p.default_dtype))
        self.complex, self.real = np.dtype("c16" if double else "c8"), np.dtype("f8" if double else "f4")
        self.reconstruction, self.frames, self.ranks = reconstruction, frames, context.ranks
        self.curiter = int((state or {}).get("iteration", 0))
        self._bands: dict[tuple[int, int], Any] = {}
        self._adopt()
        wavelength = None if self._geometry is None else self._geometry.wavelength_m
        self.optics = optics_of(self.p, self._probe[1].shape, self._stack, self.on, self.real, wavelength)
        self.patterns = Patterns(self.on, self.p, reconstruction.pods, frames, self.optics, self.real)
        if self.p.phase_plate_in_h5 is not None:
            self.patterns.plates = PhasePlates(self.on, self.p.phase_plate_in_h5, self.optics.shape, self.complex)
        self.objective = objective_of(self.p, self.patterns, next(iter(frames.values())))
        rows, held = reconstruction.pods.length, (state or {}).get("quantities", {})
        waves = self._probe[1].data
        if reconstruction.improved or state is not None:
            count = subscans(self.p) if state is not None else 1
            waves = waves.reshape(count, -1, *waves.shape[1:])
            waves = waves if count > 1 else self.on.xp.repeat(waves, subscans(self.p), axis=0)
        else:
            store = next(iter(frames.values()))
            waves = waves_of(self.p, waves, self.patterns, np.arange(rows), self._stack, store, self.ranks)
        self.at = quantities(self.p, waves, self._stack, reconstruction.pods.index, self.objective, self.real)
        self.at |= {name: self.on.put(np.asarray(given, self.real)) for name, given in held.items()}
        self._constraints = Constraints(self.on, self.p, self.optics, self.real)
        self._constraints.check()
        self._first_probe = self.at["probe"].copy()
        on_host = self.p.backend == "cpu"
        history = History(self.on.get, self.on.put) if on_host else History()
        self.descent = Descent(history, agree=partial(agreed, self.ranks))
        self._remember(state or {})
        self._batches = self.patterns.batches(mine(self.ranks, np.arange(self._known)), self._stack)
        self._new: list[Batch] = []
        """Those of frames that the optimiser's history does not know."""
        self._point: Point | None = None
        self._setting: Setting | None = None
        self._mean: tuple[int, dict[str, Any]] | None = None
        self._sequence: list[Batch] | None = None
        """The batches of `sequence`, until frames or loss are others."""
        self._told: list[dict[str, Any]] = []
        self._write()
        self.extend(np.arange(self._known, rows))

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`."""
        self._follow_canvas()
        if not len(rows):
            return
        self.at |= grown(self.p, self.at, self.reconstruction.pods.index, self.on)
        batches = self.patterns.batches(mine(self.ranks, rows), self._stack)
        self._batches, self._new = self._batches + batches, self._new + batches
        self._point = self._sequence = None

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        if not len(rows):
            return
        self._follow_canvas()
        kept: list[Batch] = []
        for batch in self._batches:
            here = np.isin(batch.rows, rows)
            left = batch.rows[~here] if what == "withdrawn" else batch.rows
            kept += [batch] if not here.any() else self.patterns.batches(left, self._stack)
        self._batches = kept
        self._forget(f"{what} of frames changed")

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`."""
        self.p = self.patterns.p = standing(parameters, self._geometry)
        self._constraints = replace(self._constraints, p=self.p)

    def complete(self) -> None:
        """See `ptystream.engine.Engine.complete`."""

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A batch is visited when any of its rows is."""
        self._follow_canvas()
        visited = self._batches
        if rows is not None:
            wanted = np.zeros(self.reconstruction.pods.length, np.bool_)
            wanted[rows] = True
            visited = [batch for batch in self._batches if wanted[batch.rows].any()]
            self._forget("some frames alone are visited")
        self._told = []
        errors, misfits = np.zeros((iterations, 3)), np.full((iterations, 3), np.nan)
        for k in range(iterations):
            point = self._epoch(visited)
            if point is not None:
                here = ~np.isnan(point.found.fits[:, 0])
                errors[k, 1] = point.found.loss / max(point.frames, 1) / self.objective.values
                misfits[k, :2] = point.found.fits[here].mean(axis=0) if here.any() else np.nan
            self.curiter += 1
            self._keep_mean()
        if rows is not None:
            self._forget("all frames are visited again")
        notes, self.descent.notes = tuple(self.descent.notes), []
        return Progress(self.curiter, errors, misfits, count(self.ranks, visited), notes=notes, more={"pypty": self._told})

    def average(self) -> None:
        """See `ptystream.engine.Engine.average`."""
        self._mean = 0, {}

    def restart(self) -> None:
        """See `ptystream.engine.Engine.restart`."""
        self.at["probe"] = self._first_probe.copy()
        self._forget("the probe begins anew")

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """See `ptystream.engine.Engine.snapshot`."""
        wanted = set(parts)
        self._write()
        copied = self.reconstruction.copy(wanted)
        for storage in (*copied.probes.values(), *copied.objects.values()):
            storage.data = self.on.get(storage.data)
        if "coverage" in wanted:
            name, stack = self._object
            lit = self.on.get(self._light())[None].astype(self.complex)
            copied.objects[name] = Storage(lit, stack.pixel_size_m, stack.offset, 0.0, stack.energy_kev)
        return copied

    def state(self) -> Mapping[str, Any]:
        """See `ptystream.engine.Engine.state`: what is refined beside probe and object, and the optimiser's history."""
        return {
            "iteration": self.curiter,
            "quantities": self.refined(),
            "known": self._known,
            "value": self._value,
            "first_probe": self.on.get(self._first_probe),
        } | noted(self.descent, np.asarray if self.p.backend == "cpu" else self.on.get)

    def refined(self) -> dict[str, NDArray[Any]]:
        """What there is beside probe and object, on the host: positions (row, 2) as corrections in pixels, tilts, current, …"""
        return {name: self.on.get(held).copy() for name, held in self.at.items() if name not in ("object", "probe")}

    def simulated(self) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """(numbers of measurements, their modelled photons (frame, y, x), centred), some at a time, on the host.

        On several ranks all of them go through it to its end; each gets the patterns of all.
        """
        rows = np.sort(self.ranks.exchange(rows_of(self._batches)))
        step = max(1, self.on.tile_bytes // (math.prod(self.optics.shape) * self.real.itemsize))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            found = np.zeros((len(part), *self.objective.detector.shape), self.real)
            for batch in self.patterns.batches(mine(self.ranks, part), self._stack):
                found[np.searchsorted(part, batch.rows)] = self.on.get(self.objective.patterns(self.at, batch))
            self.ranks.exchange(np.searchsorted(part, mine(self.ranks, part)), found)
            yield self.reconstruction.pods.index[part], np.fft.fftshift(found, axes=(1, 2))

    def modelled(self, row: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        """(modelled photons, measured ones, validity) of the frame of a row, as they are compared, on the host: each (y, x) with
        zero frequency at [0, 0], or (1, signal); None where nothing is seen of it. Takes one wave through the specimen."""
        for batch in self.patterns.batches(np.array([row]), self._stack):
            model, (measured, valid) = self.objective.patterns(self.at, batch), batch.measured()
            if self.objective.detectors is not None:
                model = self.on.xp.tensordot(model, self.objective.detectors, axes=((1, 2), (1, 2)))
            found = (self.on.get(part)[0] for part in (model, measured, self.on.xp.broadcast_to(valid, measured.shape)))
            photons, counts, seen = (part.reshape(-1, part.shape[-1]) for part in found)
            return photons, counts, seen
        return None

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        if self._mean is not None and self._mean[0]:
            self.at |= {name: held.astype(self.complex) for name, held in self._mean[1].items()}
        self._write()
        self._fold(of_rank_0(self.ranks, self.on.get(self.at["positions"])).astype(float))
        for storage in (*self.reconstruction.probes.values(), *self.reconstruction.objects.values()):
            storage.data = self.on.get(storage.data)
        self.on.sweeper.close()
        if self.patterns.plates is not None and not self.p.data_simulation_flag:
            self.patterns.plates.close()
        if not self.p.data_simulation_flag:
            self._batches = []
        self._point = self._sequence = None
        self.descent.history.forget()
        self.reconstruction.improved = True

    # ------------------------------------------------------------------ what it works on

    @property
    def _probe(self) -> tuple[str, Storage]:
        return next(iter(self.reconstruction.probes.items()))

    @property
    def _object(self) -> tuple[str, Storage]:
        return next(iter(self.reconstruction.objects.items()))

    @property
    def _stack(self) -> Stack:
        stack = self._object[1]
        assert isinstance(stack, Stack)
        return stack

    def _adopt(self) -> None:
        """Take the storages over, the object as a stack of slices. Raises `ValueError` where there are several."""
        held = self.reconstruction
        for kind, storages in (("probe", held.probes), ("object", held.objects)):
            if len(storages) != 1:
                names = ", ".join(storages)
                raise ValueError(f"engines.*.name: PyPty: works on one {kind}, there are {names}: let the scans share it")
        probe, (name, storage) = self._probe[1], self._object
        probe.data = self.on.put(np.ascontiguousarray(probe.data, self.complex))
        corners = held.pods.address[:, 0, ROW : COLUMN + 1]
        told = self.p.puzzle_positions is not None or bool(np.any(self.p.positions))
        first = np.zeros(2, np.int64) if told else corners.min(axis=0) if len(corners) else None  # the page counts from it
        held.objects[name] = stack_of(self.p, storage, self.on, self.complex, first)
        self._offset, self._begun = self._stack.offset, self._stack.begun

    def _remember(self, state: Mapping[str, Any]) -> None:
        """What there is in a checkpoint beside the quantities."""
        if "first_probe" in state:
            self._first_probe = self.on.put(np.asarray(state["first_probe"], self.complex))
        self._known = int(state.get("known", 0))
        self._value = float(state.get("value", math.nan))
        self._expected = self._value if state else None
        remember(self.descent, state, np.asarray if self.p.backend == "cpu" else self.on.put)

    def _write(self) -> None:
        """Let the storages hold what is refined."""
        stack, probe = self._stack, self._probe[1]
        stack.data = self.at["object"].reshape(stack.data.shape)
        probe.data = self.at["probe"].reshape(-1, *probe.shape)

    def _follow_canvas(self) -> None:
        """Take over an object that has grown, or was begun anew."""
        stack, before = self._stack, self.at["object"]
        if stack.begun != self._begun:
            self.at["object"], self._offset, self._begun = slices_of(stack), stack.offset, stack.begun
            return self._forget("the object was begun anew")
        if stack.shape == tuple(before.shape[-2:]) and stack.offset == self._offset:
            return
        y, x = (a - b for a, b in zip(self._offset, stack.offset, strict=True))
        whole = slices_of(self._stack)
        whole[:, :, y : y + before.shape[2], x : x + before.shape[3]] = before
        self.descent.history.change("object", lambda held: within(self.on.xp, held, stack.shape, (y, x)))
        self.at["object"], self._offset, self._point = whole, stack.offset, None

    def _light(self) -> Any:
        """Σ|P|² over the frames that see each pixel of the object. Shape (y, x), real."""
        lit = self.on.xp.zeros(self._stack.shape, self.real)
        power = (self.at["probe"].real ** 2 + self.at["probe"].imag ** 2).sum(axis=1)
        height, width = self.optics.shape
        for batch in self._batches:
            view = batch.view(self.at)
            for k, (y, x) in zip(self.on.get(view.scenario).tolist(), view.corner, strict=True):
                lit[y : y + height, x : x + width] += power[k]
        return self.on.total(lit)

    # ------------------------------------------------------------------ one epoch

    def _epoch(self, visited: Sequence[Batch]) -> Point | None:
        """One step; what was known before it. None where there is no frame."""
        self.descent.begin()
        number, there = self.p.epoch_prev + self.curiter, frozenset(self.at)
        setting = Setting.of(self.p, number, there, self.descent.held)
        if self._setting is not None and setting.key != self._setting.key:
            self._forget("what is refined, or the loss, is another from here on")
        self._setting = setting
        for name, change, why in self._constraints.before(setting, self.at["probe"].shape[1], self._home):
            self._change(name, change, why)
        self.at["probe"] = self._constraints.confined(setting, self.at["probe"])
        if setting["reset_history_flag"]:
            self.descent.forget("reset_history_flag", scale=True)
        visited = self._chosen(setting, visited)
        if not setting.moving or self.p.data_simulation_flag or not count(self.ranks, visited):
            return None
        rows, terms = self.reconstruction.pods.length, self._terms(setting)
        loss = Loss(self.objective, visited, rows, setting, terms, self._clean, self.ranks)
        if self._point is None:
            self._recognise(loss)
            carry(self.descent, loss, self._new, self.at)
            self._known, self._new = self.reconstruction.pods.length, []
            self._point = loss(self.at, curvature=True)
            self._value = self._point.value
            self._scales = loss.first(self._point, float(self._light().max()))
        before = self._point
        variables = Variables.of(self.on, self.at, setting.kinds)
        taken = self.descent.step(
            before,
            loss,
            variables,
            setting.moving,
            self._scales,
            setting.limits,
            float(setting["update_step_bfgs"]),
            float(setting["hist_length"]),
        )
        if taken.point is not None:
            self._point, self.at, self._value = taken.point, dict(taken.point.at), taken.point.value
            for name, change, why in self._constraints.after(setting, self._stack.distances_m):
                self._change(name, change, why)
            self._resize(setting)
        if setting["smart_memory"]:
            self.on.give_back()
        if self.p.remove_fft_cache:
            self.on.forget_plans()
        weight = loss.weight(before.frames)
        self._told.append(
            {
                "loss": weight * before.found.loss + sum(before.terms.values()),
                "sse": before.found.squares,
                "terms": dict(before.terms),
                "first_step": taken.first,
                "step": taken.last,
                "trials": taken.trials,
                "slope": taken.slope,
                "new_slope": taken.new_slope,
                "taken": taken.point is not None,
            }
        )
        self._tell(number, self._told[-1])
        return before

    def _recognise(self, loss: Loss) -> None:
        """After a state: whether the loss of the frames that it knows is the one it was; frames may have been cut otherwise."""
        known = [batch for batch in loss.batches if (batch.rows < self._known).all()]
        if self._expected is not None and self.descent.history.pairs and count(self.ranks, known):
            (found,) = self.descent.agree(replace(loss, batches=known)(self.at).value)
            if not math.isclose(found, self._expected, rel_tol=SAME):
                self._forget(f"the loss is {found:.6g} where the state had {self._expected:.6g}")
        self._expected = None

    def _tell(self, number: int, told: Mapping[str, Any]) -> None:
        """Lines for the log, as many as `print_flag` wants."""
        flag = self.p.print_flag
        if flag >= 2:
            self.descent.notes.append(f"epoch {number}: loss {told['loss']:.8g}, sse {told['sse']:.6g}")
        if flag >= 3:
            line = f"{told['trials']} trials from step {told['first_step']:.4g} to {told['step']:.4g}"
            self.descent.notes.append(f"epoch {number}: {line}, slope {told['slope']:.4g} to {told['new_slope']:.4g}")
        if flag >= 4 and told["loss"]:
            shares = (f"{name} {100 * part / told['loss']:.3g} %" for name, part in told["terms"].items())
            self.descent.notes.append(f"epoch {number}: {', '.join(shares) or 'no terms beside the data'}")

    def _chosen(self, setting: Setting, visited: Sequence[Batch]) -> Sequence[Batch]:
        """The batches of the frames that `sequence` names."""
        if setting["sequence"] is None:
            return visited
        if self._sequence is None:
            wanted = np.isin(self.reconstruction.pods.index, np.asarray(setting["sequence"], np.int64))
            rows = rows_of(visited)
            self._sequence = self.patterns.batches(rows[wanted[rows]], self._stack)
        return self._sequence

    def _resize(self, setting: Setting) -> None:
        """Where refined positions lead so far away that frames must see another part of the object, let them."""
        limit = float(setting["dynamically_resize_yx_object"])
        if not limit or "positions" not in setting.moving:
            return
        moved = of_rank_0(self.ranks, self.on.get(self.at["positions"]))
        if not len(moved) or np.abs(moved).max() < limit:
            return
        self._fold(moved)
        self._batches = self.patterns.batches(rows_of(self._batches), self._stack)
        self._forget("frames see another part of the object")

    def _fold(self, moved: NDArray[Any]) -> None:
        """Make corrections (row, 2), pixels, part of the pod table."""
        self._write()
        fold(self.reconstruction.pods, self._stack, self._measured_positions() + moved, moved, self.optics.shape)
        self.at["positions"] = self.on.xp.zeros_like(self.at["positions"])
        self._follow_canvas()

    def _terms(self, setting: Setting) -> Terms:
        p, probe = self.p, self.at["probe"]
        return Terms(
            self.on,
            self.on.fft,
            setting.weights,
            float(setting["mixed_variance_sigma"]),
            float(setting["atv_p"]),
            float(setting["atv_q"]),
            None if p.scan_size is None else (int(p.scan_size[0]), int(p.scan_size[1])),
            self._constraints.outside() if "probe_reg_constraint_weight" in setting.weights else None,
            self._constraints.window(setting) if "window_weight" in setting.weights else None,
            probe.shape[1] * self.at["object"].shape[0] / math.prod(self.optics.shape),
            {"positions": self.on.put(self._measured_positions().astype(self.real))},
            self.on.put(self._order()),
        )

    def _order(self) -> NDArray[np.int64]:
        """Rows in the order in which their measurements were taken, whenever they came."""
        pods = self.reconstruction.pods
        return np.lexsort((pods.index, pods.frame[:, 0]))

    def _home(self, positions: Any) -> Any:
        """Corrections with which every frame is where it was measured: some may be part of the pod table already."""
        moved = self.reconstruction.pods.moved / np.asarray(self._stack.pixel_size_m or (1.0, 1.0))
        return self.on.put((-moved).astype(positions.dtype))

    def _measured_positions(self) -> NDArray[np.float64]:
        """Of every row, without corrections, pixels (y, x)."""
        pods = self.reconstruction.pods
        return np.asarray(pods.address[:, 0, ROW : COLUMN + 1] + self.patterns.remainder(np.arange(pods.length)), np.float64)

    def _clean(self, name: str, held: Any) -> Any:
        """A gradient within the band limit of whole arrays."""
        if name not in ("object", "probe") or (name == "object" and self.p.lazy_clean):
            return held
        shape = held.shape[-2:]
        if shape not in self._bands:
            cutoff = self.p.damping_cutoff_multislice - self.p.update_extra_cut
            self._bands[shape] = self.on.put(band(shape, self.optics.pixel_m, cutoff, self.p.smooth_rolloff).astype(self.real))
        assert self._setting is not None
        parts = held.reshape(-1, *shape) if self._setting["smart_memory"] else held.reshape(1, -1, *shape)
        for part in parts:  # a slice at a time, or all at once
            spectrum = self.on.fft2(part.copy())
            spectrum *= self._bands[shape]
            part[...] = self.on.ifft2(spectrum)
        return self._constraints.confined(self._setting, held) if name == "probe" else held

    def _change(self, name: str, change: Callable[[Any], Any], why: str) -> None:
        self.at[name] = change(self.at[name])
        self._forget(why)

    def _forget(self, why: str) -> None:
        self.descent.forget(why)
        self._point = self._sequence = None

    def _keep_mean(self) -> None:
        if self._mean is None:
            return
        count, held = self._mean
        for name in ("object", "probe"):
            now = self.at[name].astype(np.complex128)
            same = name in held and held[name].shape == now.shape  # a canvas that has grown begins a mean anew
            held[name] = held[name] + (now - held[name]) / (count + 1) if same else now
        self._mean = count + 1, held
