"""PyPty: everything that forms a pattern refined together by L-BFGS, through a specimen of several slices.

The mathematics stands in docs/explanation/multislice.md. An epoch is one step of the optimiser over all frames there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ptystream.engine import Context, Progress
from ptystream.params.course import at as value_at
from ptystream.params.course import limits_of
from ptystream.reconstruction import PROBE, ROW, Reconstruction, Stack, Storage
from ptystream.scan.block import FrameStore

from ..backend import BACKENDS, Backend
from ..tiles import runs
from . import byhand
from .detector import Detector
from .journey import View, Wanted
from .memory import History
from .objective import Batch, Found, Objective
from .optics import Optics, band, electron_wavelength
from .parameters import PyPtyParameters
from .quantities import combined, product
from .search import Limits, Search, search
from .terms import Terms
from .variables import PHASE, SPECTRAL_MODULUS, SPECTRAL_PHASE, Variables

ANGSTROM = 1e-10
UPDATED = {
    "object": "update_obj",
    "probe": "update_probe",
    "positions": "update_probe_pos",
    "tilts": "update_tilts",
    "current": "update_beam_current",
    "aberrations": "update_aberrations_array",
    "background": "update_static_background",
}
"""Quantity → parameter that says whether it is refined."""
AGAINST_REJECTION = ((2, "positions"), (3, "tilts"), (4, "background"), (5, "aberrations"), (6, "probe"))
"""After so many rejected epochs one after the other this quantity is held for some epochs."""
HELD_EPOCHS = 10


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
        p = self.p
        self.context = replace(context, precision=p.default_dtype)
        self.on: Backend = BACKENDS[context.device](self.context)
        self.reconstruction, self.frames = reconstruction, frames
        self.complex = np.dtype(np.complex128 if p.default_dtype == "double" else np.complex64)
        self.real = np.dtype(np.float64 if p.default_dtype == "double" else np.float32)
        self._names = self._single(reconstruction)
        self.curiter = int((state or {}).get("iteration", 0))
        self._adopt()
        self.optics = self._optics()
        store = next(iter(frames.values()))
        self.objective = Objective(self.on, self.optics, self._detector(store), p.algorithm, p.poisson_floor)
        self.history = History()
        self.at = self._quantities(state or {})
        self._probe_at_start = self.at["probe"].copy()
        self._variables = Variables.of(self.on, self.at, {})
        self._found: Found | None = None
        self._shares: dict[str, float] = {}
        self._setting: Any = None
        self._rejected, self._held = 0, dict[str, int]()
        self._mean: tuple[int, dict[str, Any]] | None = None
        self._batches: list[Batch] = []
        self._notes: list[str] = []
        self.extend(np.arange(reconstruction.pods.length))

    def extend(self, rows: NDArray[np.int64]) -> None:
        """See `ptystream.engine.Engine.extend`."""
        self._follow_canvas()
        if not len(rows):
            return
        missing = self.reconstruction.pods.length - len(self.at["positions"])
        if missing > 0:
            for name, fill in (("positions", 0.0), ("current", 1.0)):
                if name in self.at:
                    held = self.at[name]
                    more = self.on.xp.full((missing, *held.shape[1:]), fill, held.dtype)
                    self.at[name] = self.on.xp.concatenate([held, more])
        present = rows[self.reconstruction.pods.address[rows, 0, PROBE] >= 0]
        self._batches += [self._batch(key[0], key[1], chosen) for key, chosen in self._runs(present)]
        self._forget("frames have come")

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        if not len(rows):
            return
        kept = []
        for batch in self._batches:
            here = np.isin(batch.rows, rows)
            if not here.any():
                kept.append(batch)
                continue
            if what == "withdrawn":
                rest = batch.rows[~here]
                kept += [self._batch(key[0], key[1], chosen) for key, chosen in self._runs(rest)] if len(rest) else []
            else:
                kept += [self._batch(key[0], key[1], chosen) for key, chosen in self._runs(batch.rows)]
        self._batches = kept
        self._follow_canvas()
        self._forget(f"{what} of frames changed")

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`."""
        self.p = parameters

    def complete(self) -> None:
        """See `ptystream.engine.Engine.complete`."""

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A batch is visited when any of its rows is."""
        visited = self._batches
        if rows is not None:
            wanted = np.zeros(self.reconstruction.pods.length, np.bool_)
            wanted[rows] = True
            visited = [batch for batch in self._batches if wanted[batch.rows].any()]
        if visited is not self._batches and self._found is not None:
            self._forget("not all frames are visited")
        errors, misfits = [], []
        for _ in range(iterations):
            found = self._epoch(visited)
            here = ~np.isnan(found.fits[:, 0])
            count = max(int(here.sum()), 1)
            pixels = math.prod(self.objective.detector.shape)
            errors.append([0.0, found.loss / count / pixels, 0.0])
            misfits.append([*(found.fits[here].mean(axis=0) if here.any() else (np.nan, np.nan)), np.nan])
            self.curiter += 1
            self._keep_mean()
        if rows is not None:
            self._found = None
        notes, self._notes = tuple(self._notes), []
        visiting = int(sum(len(batch.rows) for batch in visited))
        return Progress(self.curiter, np.array(errors), np.array(misfits), visiting, notes=notes)

    def average(self) -> None:
        """See `ptystream.engine.Engine.average`."""
        self._mean = 0, {}

    def restart(self) -> None:
        """See `ptystream.engine.Engine.restart`."""
        self.at["probe"] = self._probe_at_start.copy()
        self._forget("the probe begins anew")

    def snapshot(self, parts: Iterable[str] = ("probe", "object")) -> Reconstruction:
        """See `ptystream.engine.Engine.snapshot`."""
        wanted = set(parts)
        self._write()
        copied = self.reconstruction.copy(wanted)
        for storage in (*copied.probes.values(), *copied.objects.values()):
            storage.data = self.on.get(storage.data)
        if "coverage" in wanted:
            name, storage = self._names[1], self.reconstruction.objects[self._names[1]]
            lit = self.on.get(self._light())[None].astype(self.complex)
            copied.objects[name] = Storage(lit, storage.pixel_size_m, storage.offset, 0.0, storage.energy_kev)
        return copied

    def state(self) -> Mapping[str, Any]:
        """See `ptystream.engine.Engine.state`: what is refined beside probe and object, and the optimiser's history."""
        own = {name: self.on.get(held) for name, held in self.at.items() if name not in ("object", "probe")}
        pairs = [
            {"s": {k: self.on.get(v) for k, v in pair.s.items()}, "y": {k: self.on.get(v) for k, v in pair.y.items()}}
            for pair in self.history.pairs
        ]
        first = self.on.get(self._probe_at_start)
        return {"iteration": self.curiter, "quantities": own, "pairs": pairs, "scale": dict(self.history.scale), "first": first}

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`."""
        if self._mean is not None and self._mean[1]:
            self.at |= {name: held.astype(self.complex) for name, held in self._mean[1].items()}
        self._write()
        for storage in (*self.reconstruction.probes.values(), *self.reconstruction.objects.values()):
            storage.data = self.on.get(storage.data)
        self.on.sweeper.close()
        self._batches = []
        self.reconstruction.improved = True

    # ------------------------------------------------------------------ what it works on

    def _single(self, reconstruction: Reconstruction) -> tuple[str, str]:
        """Names of the probe and of the object. Raises `ValueError` where there are several."""
        for kind, held in (("probe", reconstruction.probes), ("object", reconstruction.objects)):
            if len(held) != 1:
                raise ValueError(
                    f"engines.*.name: PyPty: works on one {kind}, there are {', '.join(held)}: share it, or use one scan"
                )
        return next(iter(reconstruction.probes)), next(iter(reconstruction.objects))

    def _adopt(self) -> None:
        """Take the storages over, the object as a stack of slices."""
        r, (_, name) = self.reconstruction, self._names
        for storage in r.probes.values():
            storage.data = self.on.put(np.ascontiguousarray(storage.data, self.complex))
        held, depth = r.objects[name], int(self.p.num_slices)
        if isinstance(held, Stack):
            held.data = self.on.put(np.ascontiguousarray(held.data, self.complex))
            return
        whole = np.asarray(held.data, np.complex128)
        root = np.abs(whole) ** (1 / depth) * np.exp(1j * np.angle(whole) / depth)
        data = self.on.put(np.repeat(root, depth, axis=0).astype(self.complex))
        made = Stack(data, held.pixel_size_m, held.offset, 1.0, held.energy_kev, depth=depth, distances_m=self._distances(depth))
        r.objects[name] = made

    def _distances(self, depth: int) -> tuple[float, ...]:
        given = np.asarray(self.p.slice_distances, float).ravel() * ANGSTROM
        if len(given) not in (1, depth - 1, depth):
            raise ValueError(f"slice_distances: {len(given)} of them for {depth} slices: must be 1 or {max(depth - 1, 1)}")
        return tuple(np.broadcast_to(given[:1], depth - 1) if len(given) == 1 else given[: depth - 1])

    @property
    def _stack(self) -> Stack:
        held = self.reconstruction.objects[self._names[1]]
        assert isinstance(held, Stack)
        return held

    def _optics(self) -> Optics:
        p, storage = self.p, self.reconstruction.probes[self._names[0]]
        pixel = (p.pixel_size_y_A * ANGSTROM, p.pixel_size_x_A * ANGSTROM)
        return Optics.of(
            storage.shape,
            pixel,
            electron_wavelength(p.acc_voltage),
            self._stack.distances_m,
            cutoff=p.damping_cutoff_multislice,
            real=self.real,
            put=self.on.put,
            near=p.recon_type == "near_field",
            spherical_m=p.Cs * ANGSTROM,
            spread=p.alpha_near_field,
        )

    def _detector(self, store: FrameStore) -> Detector:
        bin = self.p.upsample_pattern
        return Detector.of(self.on, self.optics, store.shape, bin, self.p.data_pad // bin)

    def _quantities(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Where everything starts, or is when a checkpoint is resumed."""
        xp, p, count = self.on.xp, self.p, self.reconstruction.pods.length
        found = {"object": self._view(self._stack), "probe": self._probes(), "positions": xp.zeros((count, 2), self.real)}
        if p.tilt_mode or np.any(p.tilts):
            found["tilts"] = self.on.put(np.asarray(p.tilts, self.real))
        if p.beam_current is not None or value_varies(p.update_beam_current):
            given = np.ones(count) if p.beam_current is None else np.resize(np.asarray(p.beam_current, float), count)
            found["current"] = self.on.put(given.astype(self.real))
        if isinstance(p.static_background, np.ndarray):
            found["background"] = self.on.put(np.fft.ifftshift(p.static_background).astype(self.real))
        for name, held in state.get("quantities", {}).items():
            found[name] = self.on.put(np.asarray(held, self.real))
        return found

    def _view(self, stack: Stack) -> Any:
        """The object as (mode, slice, y, x)."""
        return stack.data.reshape(stack.layers, stack.depth, *stack.shape)

    def _probes(self) -> Any:
        """Probes as (scenario, mode, y, x)."""
        data = self.reconstruction.probes[self._names[0]].data
        count = 1 if self.p.probe_marker is None else int(np.max(self.p.probe_marker)) + 1
        return self.on.xp.tile(data[None], (count, 1, 1, 1)) if count > 1 else data[None]

    def _write(self) -> None:
        """Let the storages hold what is refined."""
        stack, probe = self._stack, self.reconstruction.probes[self._names[0]]
        stack.data = self.at["object"].reshape(stack.data.shape)
        probe.data = self.at["probe"].reshape(-1, *probe.shape)

    def _follow_canvas(self) -> None:
        """Take over an object that has grown; steps and gradients of new pixels were 0, so the pairs that are kept stay right."""
        stack = self._stack
        if stack.shape == tuple(self.at["object"].shape[-2:]) and stack.offset == self._offset():
            return
        before, (y, x) = self.at["object"], (b - a for a, b in zip(stack.offset, self._offset(), strict=True))
        whole = self._view(stack)
        whole[:, :, y : y + before.shape[2], x : x + before.shape[3]] = before
        self.at["object"], self._known_offset = whole, stack.offset
        self._forget("the object has grown")

    def _offset(self) -> tuple[int, int]:
        if not hasattr(self, "_known_offset"):
            self._known_offset = self._stack.offset
        return self._known_offset

    # ------------------------------------------------------------------ batches

    def _runs(self, rows: NDArray[np.int64]) -> list[tuple[Any, NDArray[np.int64]]]:
        table, height_width = self.reconstruction.pods, math.prod(self.optics.shape)
        size = self.p.compute_batch
        if size == "auto":
            each = height_width * self.complex.itemsize * table.pods * max(1, self._stack.depth)
            size = max(1, self.on.tile_bytes // each)
        return list(runs(table, rows, self.frames, int(size)))

    def _batch(self, scan: int, number: int, rows: NDArray[np.int64]) -> Batch:
        store, table = self.frames[scan], self.reconstruction.pods
        slab, places = store.slab(number), table.frame[rows, 1] % store.slab_frames
        device = self.on.put(rows)

        def measured() -> tuple[Any, Any]:
            counts = self.on.put(slab[places])
            valid = self.on.put(store.mask)[None] * (counts < store.limit)
            if store.weights is not None:
                valid = valid * self.on.put(store.weights)[None]
            photons = self.on.xp.where(valid > 0, counts, 0).astype(self.real)
            return photons * self.real.type(self.p.data_multiplier), valid.astype(self.real)

        def view(at: Mapping[str, Any]) -> View:
            return self._seen(rows, device, at)

        return Batch(rows, view, measured)

    def _seen(self, rows: NDArray[np.int64], device: Any, at: Mapping[str, Any]) -> View:
        p, table, put = self.p, self.reconstruction.pods, self.on.put
        corner = table.address[rows, 0, ROW : ROW + 2].astype(np.int64) - np.asarray(self._stack.offset)
        shift = at["positions"][device]
        if p.allow_subPixel_shift:
            shift = shift + put(table.remainder[rows, 0].astype(self.real))
        current = put(table.weight[rows, 0].astype(self.real))
        if "current" in at:
            current = current * at["current"][device]
        scenario = np.zeros(len(rows), np.int64)
        if p.probe_marker is not None:
            scenario = np.asarray(p.probe_marker)[table.index[rows] % len(p.probe_marker)]
        tilts = None
        if "tilts" in at:
            tilts = at["tilts"][device] if len(at["tilts"]) > 1 else self.on.xp.tile(at["tilts"], (len(rows), 1))
        mode = p.tilt_mode
        defocus = np.asarray(p.defocus_array, float).ravel() * ANGSTROM
        return View(
            device,
            corner,
            put(scenario),
            current,
            before=tilts[:, 0:2] if tilts is not None and mode in (2, 4) else None,
            inside=tilts[:, 2:4] if tilts is not None and mode in (0, 3, 4) else None,
            after=tilts[:, 4:6] if tilts is not None and mode in (1, 3, 4) else None,
            shift=shift if p.allow_subPixel_shift or self._refines_positions else None,
            defocus=put((defocus[table.index[rows] % len(defocus)]).astype(self.real)),
        )

    @property
    def _refines_positions(self) -> bool:
        return bool(self.p.update_probe_pos)

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

    def _epoch(self, visited: Sequence[Batch]) -> Found:
        """One step; what was found before it."""
        number = self.p.epoch_prev + self.curiter
        self._choose(number)
        self._before_step()
        if self._found is None:
            self._found, self._shares = self._evaluate(self.at, visited, curvature=True)
        found = self._found
        if not visited:
            return found
        gradient = self._variables.pulled(found.gradient, self.at)
        step = self.history.direction(gradient, self._first(found))
        slope = product(gradient, step)
        if not slope < 0:
            self.history.forget(scale=False)
            step = self.history.direction(gradient, self._first(found))
            slope = product(gradient, step)
        here = self._variables.taken({name: self.at[name] for name in self._moving})
        ended: Search[Any] = search(
            lambda t: self._try(here, t, step, visited),
            self._value(found),
            slope,
            self._setting["update_step_bfgs"],
            self._limits(),
        )
        self._passes = ended.trials
        if ended.taken is None or not slope < 0:
            self._rejected += 1
            self._hold()
            self.history.forget()
            self._found = None
            return found
        self._rejected = 0
        there, quantities, after, shares, pull = ended.taken.at
        self.history.learn(combined(there, -1, here), combined(pull, -1, gradient), self._setting["hist_length"])
        self.at, self._found, self._shares = quantities, after, shares
        self._after_step()
        return found

    def _try(
        self, here: Mapping[str, Any], t: float, step: Mapping[str, Any], visited: Sequence[Batch]
    ) -> tuple[float, float, Any]:
        there = combined(here, t, step)
        quantities = self.at | self._variables.given(there)
        found, shares = self._evaluate(quantities, visited)
        pull = self._variables.pulled(found.gradient, quantities)
        return self._value(found), product(pull, step), (there, quantities, found, shares, pull)

    def _value(self, found: Found) -> float:
        """What is made smaller, per frame."""
        return (found.loss * self._weight(found) + sum(self._shares_of(found).values())) / self._count(found)

    def _shares_of(self, found: Found) -> Mapping[str, float]:
        return found.terms

    def _count(self, found: Found) -> int:
        return max(int(np.count_nonzero(~np.isnan(found.fits[:, 0]))), 1)

    def _weight(self, found: Found) -> float:
        weight = self._setting["loss_weight"]
        if weight == "mean":
            return 1 / self._count(found)
        if weight == "mean_full":
            return 1 / (self._count(found) * math.prod(self.objective.detector.shape))
        return float(weight)

    def _evaluate(
        self, at: Mapping[str, Any], visited: Sequence[Batch], *, curvature: bool = False
    ) -> tuple[Found, dict[str, float]]:
        """Loss and gradient of all terms, per frame; what each term comes to."""
        wanted = self._wanted
        found = self.objective.evaluate(
            at, visited, wanted, self.reconstruction.pods.length, background="background" in self._moving, curvature=curvature
        )
        factor, count = self._weight(found), self._count(found)
        total = {name: held * self.real.type(factor) for name, held in found.gradient.items() if name in self._moving}
        shares = self._terms.add(at, total)
        found.terms = shares
        found.gradient = {name: self._clean(name, held) / self.real.type(count) for name, held in total.items()}
        return found, shares

    def _clean(self, name: str, held: Any) -> Any:
        """Within the band limit of whole arrays."""
        if (name == "object" and self.p.lazy_clean) or name not in ("object", "probe"):
            return held
        spectrum = self.on.fft2(held.copy())
        spectrum *= self._band(held.shape[-2:])
        return self.on.ifft2(spectrum)

    def _band(self, shape: tuple[int, int]) -> Any:
        if getattr(self, "_bands", None) is None:
            self._bands: dict[Any, Any] = {}
        if shape not in self._bands:
            p = self.p
            cutoff = p.damping_cutoff_multislice - p.update_extra_cut
            limit = band(shape, self.optics.pixel_m, cutoff, p.smooth_rolloff)
            self._bands[shape] = self.on.put(limit.astype(self.real))
        return self._bands[shape]

    def _choose(self, epoch: int) -> None:
        """Parameters of this epoch; what makes the loss another one makes the optimiser forget."""
        p = self.p
        chosen = {
            name: value_at(getattr(p, name), epoch)
            for name, field in type(p).model_fields.items()
            if limits_of(field) is not None
        }
        self._held = {name: left - 1 for name, left in self._held.items() if left > 1}
        moving = {name for name, switch in UPDATED.items() if chosen[switch] and name in self.at and name not in self._held}
        kinds: dict[str, str] = {}
        if chosen["phase_only_obj"] and "object" in moving:
            kinds["object"] = PHASE
        if chosen["tune_only_probe_phase"] and "probe" in moving:
            kinds["probe"] = SPECTRAL_PHASE
        if chosen["tune_only_probe_abs"] and "probe" in moving:
            kinds["probe"] = SPECTRAL_MODULUS
        weights = {
            name: float(chosen[name])
            for name in chosen
            if name.endswith("_weight") or "_reg_weight_" in name
            if name != "loss_weight"
        }
        weights = {name: weight for name, weight in weights.items() if weight > 0 and math.isfinite(weight)}
        key = (moving, kinds, weights, chosen["loss_weight"], chosen["atv_p"], chosen["atv_q"], chosen["mixed_variance_sigma"])
        self._setting = chosen
        if key != getattr(self, "_key", None):
            if getattr(self, "_key", None) is not None:
                self._forget("what is refined, or the loss, is another from here on")
            self._key, self._moving = key, moving
            self._wanted = Wanted(
                *(name in moving for name in ("object", "probe", "positions", "tilts", "current", "aberrations"))
            )
            self._variables = Variables.of(self.on, self.at, kinds)
            self._terms = self._made_terms(weights, chosen)
            self._found = None
        if chosen["reset_history_flag"]:
            self.history.forget()

    def _made_terms(self, weights: Mapping[str, float], chosen: Mapping[str, Any]) -> Terms:
        import scipy.fft

        scan = None if self.p.scan_size is None else (int(self.p.scan_size[0]), int(self.p.scan_size[1]))
        pixels = math.prod(self.optics.shape)
        modes = self.at["probe"].shape[1] * self.at["object"].shape[0]
        made = Terms(
            self.on,
            scipy.fft,
            weights,
            float(chosen["mixed_variance_sigma"]),
            float(chosen["atv_p"]),
            float(chosen["atv_q"]),
            scan,
        )
        made.probe_unit = modes / pixels
        return made

    def _before_step(self) -> None:
        """Changes by hand that come before an epoch."""
        chosen, xp = self._setting, self.on.xp
        if chosen["restart_from_vacuum"]:
            self._by_hand("object", lambda o: xp.ones_like(o))
        if chosen["reset_positions"]:
            self._by_hand("positions", lambda x: xp.zeros_like(x))
        if chosen["keep_probe_states_orthogonal"] and self.at["probe"].shape[1] > 1:
            self._by_hand("probe", lambda probe: byhand.orthogonal(xp, probe))

    def _after_step(self) -> None:
        """Changes by hand that come after a step that was taken."""
        chosen, xp = self._setting, self.on.xp
        phase, absorption = float(chosen["apply_gaussian_filter"]), float(chosen["apply_gaussian_filter_amplitude"])
        if phase or absorption:
            self._by_hand("object", lambda o: byhand.smoothed(xp, self.on.ndimage, o, phase, absorption))

    def _by_hand(self, name: str, change: Callable[[Any], Any]) -> None:
        self.at[name] = change(self.at[name])
        self._variables = Variables.of(self.on, self.at, self._variables.kinds)
        self.history.forget()
        self._found = None

    def _first(self, found: Found) -> dict[str, float]:
        """Length of a first step along the gradient, for each quantity: one over how sharply the loss bends."""
        count = self._count(found)
        factor = self._weight(found)
        lit = float(self.on.get(self._light().max())) if "object" in self._moving else 1.0
        depth = self._stack.depth
        scales = {"object": count / max(lit, 1e-30) / depth, "probe": 1.0, "background": 0.5}
        for name, bends in found.curvature.items():
            held = self.on.get(bends)
            mean = float(held[held > 0].mean()) if (held > 0).any() else 0.0
            scales[name] = count / mean if mean > 0 else 0.0
        for name, kind in self._variables.kinds.items():
            power = 1.0 if name == "object" else max(float((abs(self.at[name]) ** 2).max()), 1e-30)
            scales[name] = scales[name] / 2 / (power if kind == SPECTRAL_PHASE else 1.0)
        if self.p.algorithm.startswith("lsq") and self.p.algorithm in ("lsq", "lsq_compressed"):
            factor *= 4 * self._brightness()
        return {name: scale / factor for name, scale in scales.items()}

    def _brightness(self) -> float:
        """Σm²/Σm of a batch: the photons of a pixel that a photon falls on."""
        photons, _ = self._batches[0].measured()
        return float((photons**2).sum() / max(float(photons.sum()), 1e-30))

    def _limits(self) -> Limits:
        p, chosen = self.p, self._setting
        most = math.inf if p.max_count is None else p.max_count
        return Limits(chosen["wolfe_c1_constant"], chosen["wolfe_c2_constant"], p.reduce_factor, p.optimism, most, p.min_step)

    def _hold(self) -> None:
        for rejected, name in AGAINST_REJECTION:
            if self._rejected >= rejected and name in self._moving and name not in self._held and len(self._moving) > 1:
                self._held[name] = HELD_EPOCHS
                self._notes.append(f"{self._rejected} epochs without a step: {name} held for {HELD_EPOCHS} epochs")
                break

    def _forget(self, why: str) -> None:
        """The loss is another one: what is known of its slope and curvature is not."""
        if self.history.pairs:
            self._notes.append(f"history forgotten: {why}")
        self.history.forget(scale=False)
        self._found = None

    def _keep_mean(self) -> None:
        if self._mean is None:
            return
        count, held = self._mean
        for name in ("object", "probe"):
            now = self.at[name].astype(np.complex128)
            fits = name in held and held[name].shape == now.shape
            held[name] = held[name] + (now - held[name]) / (count + 1) if fits else now
        self._mean = count + 1, held


def value_varies(value: Any) -> bool:
    """Whether a switch is on in some epoch."""
    return callable(value) or isinstance(value, str | dict) or bool(value)
