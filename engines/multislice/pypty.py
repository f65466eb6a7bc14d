"""PyPty: everything that forms a pattern refined together by L-BFGS, through a specimen of several slices.

The mathematics stands in docs/explanation/multislice.md. An epoch is one step of the optimiser over all frames there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from ptystream.engine import Context, Progress
from ptystream.params.course import varies
from ptystream.reconstruction import Reconstruction, Stack, Storage
from ptystream.scan.block import FrameStore

from ..backend import BACKENDS, Backend
from . import byhand
from .descent import Descent
from .detector import Detector
from .loss import Loss, Point
from .memory import Pair
from .objective import Batch, Objective
from .optics import Optics, band, electron_wavelength
from .parameters import PyPtyParameters
from .patterns import ANGSTROM, Patterns
from .setting import Setting
from .terms import Terms
from .variables import Variables


class PyPty:
    """See the module."""

    Parameters = PyPtyParameters
    spreads: ClassVar[bool] = False
    takes_volumes: ClassVar[bool] = False

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
        double = self.p.default_dtype == "double"
        self.on: Backend = BACKENDS[context.device](replace(context, precision=self.p.default_dtype))
        self.complex, self.real = np.dtype("c16" if double else "c8"), np.dtype("f8" if double else "f4")
        self.reconstruction, self.frames = reconstruction, frames
        self.curiter = int((state or {}).get("iteration", 0))
        self._bands: dict[tuple[int, int], Any] = {}
        self._adopt()
        self.optics = self._optics()
        self.patterns = Patterns(self.on, self.p, reconstruction.pods, frames, self.optics, self.real)
        store, bin = next(iter(frames.values())), self.p.upsample_pattern
        detector = Detector.of(self.on, self.optics, store.shape, bin, self.p.data_pad // bin)
        self.objective = Objective(self.on, self.optics, detector, self.p.algorithm, self.p.poisson_floor)
        self.at = self._quantities(state or {})
        self._first_probe = self.at["probe"].copy()
        self.descent = Descent()
        self._remember(state or {})
        self._batches: list[Batch] = []
        self._point: Point | None = None
        self._setting: Setting | None = None
        self._mean: tuple[int, dict[str, Any]] | None = None
        self.extend(np.arange(reconstruction.pods.length))

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`."""
        self._follow_canvas()
        if not len(rows):
            return
        for name, fill in (("positions", 0.0), ("current", 1.0)):
            missing = self.reconstruction.pods.length - len(self.at[name]) if name in self.at else 0
            if missing > 0:
                held = self.at[name]
                self.at[name] = self.on.xp.concatenate([held, self.on.xp.full((missing, *held.shape[1:]), fill, held.dtype)])
        self._batches += self.patterns.batches(rows, self._stack)
        self._forget("frames have come")

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
        self.p = self.patterns.p = parameters

    def complete(self) -> None:
        """See `ptystream.engine.Engine.complete`."""

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A batch is visited when any of its rows is."""
        visited = self._batches
        if rows is not None:
            wanted = np.zeros(self.reconstruction.pods.length, np.bool_)
            wanted[rows] = True
            visited = [batch for batch in self._batches if wanted[batch.rows].any()]
            self._forget("some frames alone are visited")
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
        return Progress(self.curiter, errors, misfits, sum(len(batch.rows) for batch in visited), notes=notes)

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
        history, get = self.descent.history, self.on.get
        own = {name: get(held) for name, held in self.at.items() if name not in ("object", "probe")}
        pairs = [{part: {n: get(v) for n, v in getattr(pair, part).items()} for part in ("s", "y")} for pair in history.pairs]
        return {
            "iteration": self.curiter,
            "quantities": own,
            "pairs": pairs,
            "curvature": [pair.rho for pair in history.pairs],
            "scale": dict(history.scale),
            "first_probe": get(self._first_probe),
        }

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        if self._mean is not None and self._mean[0]:
            self.at |= {name: held.astype(self.complex) for name, held in self._mean[1].items()}
        self._write()
        for storage in (*self.reconstruction.probes.values(), *self.reconstruction.objects.values()):
            storage.data = self.on.get(storage.data)
        self.on.sweeper.close()
        self._batches = []
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
        if isinstance(storage, Stack):
            storage.data = self.on.put(np.ascontiguousarray(storage.data, self.complex))
        else:
            depth, whole = int(self.p.num_slices), np.asarray(storage.data, np.complex128)
            root = np.abs(whole) ** (1 / depth) * np.exp(1j * np.angle(whole) / depth)
            data = self.on.put(np.repeat(root, depth, axis=0).astype(self.complex))
            made = Stack(data, storage.pixel_size_m, storage.offset, depth=depth, distances_m=self._distances(depth))
            made.energy_kev = storage.energy_kev
            held.objects[name] = made
        self._offset = self._stack.offset

    def _distances(self, depth: int) -> tuple[float, ...]:
        given = np.asarray(self.p.slice_distances, float).ravel() * ANGSTROM
        if len(given) not in (1, depth - 1, depth):
            raise ValueError(f"slice_distances: {len(given)} of them for {depth} slices: must be 1 or {max(depth - 1, 1)}")
        return tuple(np.resize(given, depth - 1).tolist()) if depth > 1 else ()

    def _optics(self) -> Optics:
        p = self.p
        return Optics.of(
            self._probe[1].shape,
            (p.pixel_size_y_A * ANGSTROM, p.pixel_size_x_A * ANGSTROM),
            electron_wavelength(p.acc_voltage),
            self._stack.distances_m,
            cutoff=p.damping_cutoff_multislice,
            real=self.real,
            put=self.on.put,
            near=p.recon_type == "near_field",
            spherical_m=p.Cs * ANGSTROM,
            spread=p.alpha_near_field,
        )

    def _quantities(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Where everything starts, or is when a checkpoint is resumed."""
        xp, p, count = self.on.xp, self.p, self.reconstruction.pods.length
        probe = self._probe[1].data[None]
        if p.probe_marker is not None:
            probe = xp.repeat(probe, int(np.max(p.probe_marker)) + 1, axis=0)
        found = {"object": self._seen_as_slices(), "probe": probe.copy(), "positions": xp.zeros((count, 2), self.real)}
        if np.any(p.tilts) or varies(p.update_tilts) or p.update_tilts:
            found["tilts"] = self.on.put(np.asarray(p.tilts, self.real))
        if p.beam_current is not None or varies(p.update_beam_current) or p.update_beam_current:
            given = np.ones(count) if p.beam_current is None else np.asarray(p.beam_current, float)
            full = np.concatenate([given[:count], np.ones(max(count - len(given), 0))])
            found["current"] = self.on.put(full.astype(self.real))
        if isinstance(p.static_background, np.ndarray):
            found["background"] = self.on.put(np.fft.ifftshift(p.static_background).astype(self.real))
        return found | {name: self.on.put(np.asarray(held, self.real)) for name, held in state.get("quantities", {}).items()}

    def _remember(self, state: Mapping[str, Any]) -> None:
        """The optimiser's history of a checkpoint."""
        if "first_probe" in state:
            self._first_probe = self.on.put(np.asarray(state["first_probe"], self.complex))
        history = self.descent.history
        history.scale = {str(name): float(scale) for name, scale in state.get("scale", {}).items()}
        for held, rho in zip(state.get("pairs", ()), state.get("curvature", ()), strict=True):
            s, y = ({name: self.on.put(np.asarray(v)) for name, v in held[part].items()} for part in ("s", "y"))
            history.pairs.append(Pair(s, y, float(rho)))

    def _seen_as_slices(self) -> Any:
        """The object's storage as (mode, slice, y, x)."""
        stack = self._stack
        return stack.data.reshape(stack.layers, stack.depth, *stack.shape)

    def _write(self) -> None:
        """Let the storages hold what is refined."""
        stack, probe = self._stack, self._probe[1]
        stack.data = self.at["object"].reshape(stack.data.shape)
        probe.data = self.at["probe"].reshape(-1, *probe.shape)

    def _follow_canvas(self) -> None:
        """Take over an object that has grown, or was begun anew."""
        stack, before = self._stack, self.at["object"]
        if stack.shape == tuple(before.shape[-2:]) and stack.offset == self._offset:
            return
        y, x = (a - b for a, b in zip(self._offset, stack.offset, strict=True))
        whole = self._seen_as_slices()
        whole[:, :, y : y + before.shape[2], x : x + before.shape[3]] = before
        self.at["object"], self._offset = whole, stack.offset
        self._forget("the object has grown")

    def _light(self) -> Any:
        """Σ|P|² over the frames that see each pixel of the object. Shape (y, x), real."""
        lit = self.on.xp.zeros(self._stack.shape, self.real)
        power = (self.at["probe"].real ** 2 + self.at["probe"].imag ** 2).sum(axis=1)
        height, width = self.optics.shape
        for batch in self._batches:
            view = batch.view(self.at)
            for k, (y, x) in zip(self.on.get(view.scenario).tolist(), view.corner, strict=True):
                lit[y : y + height, x : x + width] += power[k]
        return lit

    # ------------------------------------------------------------------ one epoch

    def _epoch(self, visited: Sequence[Batch]) -> Point | None:
        """One step; what was known before it. None where there is no frame."""
        self.descent.begin()
        number, there = self.p.epoch_prev + self.curiter, frozenset(self.at)
        setting = Setting.of(self.p, number, there, self.descent.held)
        if self._setting is not None and setting.key != self._setting.key:
            self._forget("what is refined, or the loss, is another from here on")
        self._setting = setting
        self._by_hand_before(setting)
        if setting["reset_history_flag"]:
            self.descent.forget("reset_history_flag", scale=True)
        if not visited or not setting.moving:
            return None
        loss = Loss(self.objective, visited, self.reconstruction.pods.length, setting, self._terms(setting), self._clean)
        if self._point is None:
            self._point = loss(self.at, curvature=True)
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
            self._point, self.at = taken.point, dict(taken.point.at)
            self._by_hand_after(setting)
        return before

    def _terms(self, setting: Setting) -> Terms:
        p, probe = self.p, self.at["probe"]
        return Terms(
            self.on,
            scipy.fft,
            setting.weights,
            float(setting["mixed_variance_sigma"]),
            float(setting["atv_p"]),
            float(setting["atv_q"]),
            None if p.scan_size is None else (int(p.scan_size[0]), int(p.scan_size[1])),
            probe_unit=probe.shape[1] * self.at["object"].shape[0] / math.prod(self.optics.shape),
        )

    def _clean(self, name: str, held: Any) -> Any:
        """A gradient within the band limit of whole arrays."""
        if name not in ("object", "probe") or (name == "object" and self.p.lazy_clean):
            return held
        shape = held.shape[-2:]
        if shape not in self._bands:
            cutoff = self.p.damping_cutoff_multislice - self.p.update_extra_cut
            self._bands[shape] = self.on.put(band(shape, self.optics.pixel_m, cutoff, self.p.smooth_rolloff).astype(self.real))
        spectrum = self.on.fft2(held.copy())
        spectrum *= self._bands[shape]
        return self.on.ifft2(spectrum)

    def _by_hand_before(self, setting: Setting) -> None:
        xp = self.on.xp
        if setting["restart_from_vacuum"]:
            self._change("object", xp.ones_like, "restart_from_vacuum")
        if setting["reset_positions"]:
            self._change("positions", xp.zeros_like, "reset_positions")
        if setting["keep_probe_states_orthogonal"] and self.at["probe"].shape[1] > 1:
            self._change("probe", lambda probe: byhand.orthogonal(xp, probe), "keep_probe_states_orthogonal")
        if setting["do_charge_flip"]:
            delta, beta = ((setting[f"cf_{n}_phase"], setting[f"cf_{n}_abs"]) for n in ("delta", "beta"))
            self._change("object", lambda o: byhand.flipped(xp, scipy.fft, o, delta, beta), "do_charge_flip")

    def _by_hand_after(self, setting: Setting) -> None:
        xp, on = self.on.xp, self.on
        widths = float(setting["apply_gaussian_filter"]), float(setting["apply_gaussian_filter_amplitude"])
        if any(widths):
            self._change("object", lambda o: byhand.smoothed(xp, on.ndimage, o, *widths), "apply_gaussian_filter")
        if setting["beta_wedge"] and self._stack.depth > 1:
            pixels = (self._stack.distances_m[0], *self.optics.pixel_m)
            self._change("object", lambda o: byhand.without_wedge(xp, scipy.fft, o, setting["beta_wedge"], pixels), "beta_wedge")

    def _change(self, name: str, change: Callable[[Any], Any], why: str) -> None:
        self.at[name] = change(self.at[name])
        self._forget(why)

    def _forget(self, why: str) -> None:
        self.descent.forget(why)
        self._point = None

    def _keep_mean(self) -> None:
        if self._mean is None:
            return
        count, held = self._mean
        for name in ("object", "probe"):
            now = self.at[name].astype(np.complex128)
            same = name in held and held[name].shape == now.shape  # a canvas that has grown begins a mean anew
            held[name] = held[name] + (now - held[name]) / (count + 1) if same else now
        self._mean = count + 1, held
