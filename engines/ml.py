"""ML, maximum likelihood by conjugate gradients: Thibault & Guizar-Sicairos, New J. Phys. 14, 063004 (2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from ptystream.engine import Context, Progress
from ptystream.params.base import parameter
from ptystream.reconstruction import Dispersion, Reconstruction, Storage
from ptystream.scan.block import FrameStore

from .conjugate import Conjugate
from .constraints import support
from .dispersion import linear_part
from .fields import Fields, scaled
from .likelihood import Descent, Likelihood
from .line import Taken, step_length
from .parameters import EngineParameters, RefiningParameters
from .precondition import Preconditioner
from .smoothness import Smoothness, seen
from .tiled import TiledEngine, means, rows_of
from .tiles import Tile

LAST_TRIES = 8
"""How often the last step of all is shortened."""


class MLParameters(RefiningParameters, EngineParameters):
    """Maximum likelihood."""

    name: str = parameter("ML")
    """Name of the engine."""

    ML_type: Literal["gaussian", "poisson", "euclid"] = parameter("gaussian")
    """Likelihood model: one of 'gaussian', 'poisson' or 'euclid'

    'gaussian': Σ w (M - I)²/(1/R + I), with the modelled and measured intensities M and I; 'poisson': the negative logarithm of
    the Poisson probability; 'euclid': Σ w (√M - √I)². w are a scan's statistical weights, 0 where pixels are masked, times R =
    `intensity_renormalization`. (With several modes ptypy's 'euclid' takes the sum of their moduli for √M; here it is the
    root of the sum of their intensities.)"""

    floating_intensities: bool = parameter(False)
    """Adaptive diffraction pattern rescaling

    If True, allow for adaptive rescaling of the diffraction pattern intensities (to correct for incident beam intensity
    fluctuations): before its gradient is taken, each frame's modelled intensity gets the factor that fits best."""

    intensity_renormalization: float = parameter(1.0, lower=0.0)
    """Rescales the intensities so they can be interpreted as Poisson counts: R times an intensity is a count.

    In all three likelihoods (in ptypy in 'gaussian' alone)."""

    reg_del2: bool = parameter(False)
    """Whether to use a Gaussian prior (smoothing) regularizer: the squared differences of neighbouring object pixels."""

    reg_del2_amplitude: float = parameter(0.01, lower=0.0, steerable=True)
    """Amplitude of the Gaussian prior if used

    In units of (diffraction pixels) (counts) / (8 (object pixels)²), over all frames there are at the time. Object pixels are
    those in the view of any frame, and only pairs of these are compared, so that the size of the canvas plays no part. (ptypy
    counts its whole canvas, and the photons of a scan that came in k blocks about (k + 1)/2 times.)"""

    smooth_gradient: float = parameter(0.0, steerable=True)
    """Smoothing preconditioner: sigma for gaussian filter (turned off if 0.), object pixels

    Half of a symmetric preconditioner: the filter is applied to the gradient and again for the direction."""

    smooth_gradient_decay: float = parameter(0.0, steerable=True)
    """Decay rate for smoothing preconditioner

    Sigma for gaussian filter will reduce exponentially at this rate: times (1 - rate) in each iteration."""

    scale_precond: bool = parameter(False)
    """Whether to use the object/probe scaling preconditioner

    This parameter can give faster convergence for weakly scattering samples. The probe's gradient is scaled to the size of the
    object's, times `scale_probe_object`; the factor follows slowly, s ← s^0.9 s_new^0.1."""

    scale_probe_object: float = parameter(1.0, lower=0.0)
    """Relative scale of probe to object"""

    wavefield_precond: bool = parameter(False, ours=True)
    """Whether to divide gradients by the power they were summed with: the object's by Σ|P|², the probe's by Σ|O|²."""

    wavefield_delta_object: float = parameter(0.1, lower=0.0, ours=True)
    """Added to Σ|P|² before the object's gradient is divided by it (`wavefield_precond`), photons"""

    wavefield_delta_probe: float = parameter(0.1, lower=0.0, ours=True)
    """Added to Σ|O|² before the probe's gradient is divided by it (`wavefield_precond`)"""

    probe_update_start: int = parameter(2, lower=0)
    """Number of iterations before probe update starts"""

    poly_line_coeffs: Literal["quadratic", "all"] = parameter("quadratic")
    """How many coefficients to be used in the linesearch

    Choose between the 'quadratic' approximation (default) or 'all': the polynomial of degree 8, exact for 'gaussian', to second
    order in the change of the intensities for the others."""

    subpix: Literal["linear", "fourier"] | None = parameter("linear", ours=True)
    """Subpixel interpolation

    The part of a position that is smaller than an object pixel shifts the probe: by bilinear weights ('linear') or a phase ramp
    ('fourier'); None: positions are rounded."""

    subpix_start: int = parameter(0, lower=0, ours=True)
    """Number of iterations before starting subpixel interpolation"""

    @field_validator("smooth_gradient")
    @classmethod
    def _not_negative(cls, value: float) -> float:
        if not value >= 0:
            raise ValueError("must be a standard deviation in pixels, 0 or more; there is no Hann filter for negative values")
        return value

    @field_validator("smooth_gradient_decay")
    @classmethod
    def _a_rate(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("must be from 0 (the filter stays as it is) to 1 (it is gone after the first iteration)")
        return value


class ML(TiledEngine):
    """Conjugate gradients on the likelihood of all frames, two sweeps per iteration: for the gradient, and for the step.

    No waves are kept, so frames may come, move, change and go at any time: what hangs on the data (photons, pixels seen,
    weights) is found anew. The direction then remembers a cost that is no longer the same; its share in the next one is
    multiplied by the share of frames that both have in common. An iteration over some of the frames takes a step along the
    gradient of these, whose conjugate would say nothing about the others, and leaves none behind.

    A step whose cost turns out larger than what it started from, as the parabola's may, is taken back in part: that is then
    the iteration's work.
    """

    Parameters = MLParameters
    keeps_waves = False

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ptystream.engine.Engine.start`. A resumed engine begins along the gradient."""
        self._followed: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._before = 0
        self._smoothness: tuple[Any, Smoothness] | None = None
        self._taken: Taken | None = None
        self._changes = 0
        self._shifting: str | None = None
        super().start(reconstruction, frames, context, state)
        self._confined = {name for name, _ in self._probes() if self.p.probe_update_start < self.curiter}
        """Probes that are inside their supports."""
        self.likelihood = Likelihood(self.on, reconstruction, frames, self.sight, context.ranks)
        if (state or {}).get("float_intensities") is not None:
            self.likelihood.scale = self.on.put(np.asarray((state or {})["float_intensities"], self.real))
        self.conjugate = Conjugate(self.on, self._within)
        self.precondition = Preconditioner(self.on, (state or {}).get("scale"))

    def revise(self, rows: NDArray[np.int64], what: str) -> None:
        """See `ptystream.engine.Engine.revise`."""
        super().revise(rows, what)
        self._changes += 1
        self._followed[rows[rows < len(self._followed)]] = False
        if what in ("frame", "mask"):
            self.likelihood.forget(rows)

    def configure(self, parameters: Any) -> None:
        """See `ptystream.engine.Engine.configure`. The next direction is the gradient's."""
        if any(getattr(parameters, name) != getattr(self.p, name) for name in ("probe_support", "probe_fourier_support")):
            self._confined.clear()
        super().configure(parameters)
        self._forget()

    def restart(self) -> None:
        """See `ptystream.engine.Engine.restart`."""
        super().restart()
        self._confined.clear()
        self._forget()

    def state(self) -> Mapping[str, Any]:
        """See `ptystream.engine.Engine.state`: the scale of the probe, and what intensities were multiplied with."""
        floating = {"float_intensities": self.on.get(self.likelihood.scale).copy()} if self.p.floating_intensities else {}
        return {**super().state(), "scale": self.precondition.scale, **floating}

    def iterate(self, iterations: int, rows: NDArray[np.int64] | None = None) -> Progress:
        """See `ptystream.engine.Engine.iterate`. A tile is visited when any of its rows is."""
        wanted = np.full(self.reconstruction.pods.length, rows is None)
        if rows is not None:
            wanted[rows] = True
        visited = [tile for tile in self.tiles if wanted[tile.rows].any()]
        errors, misfits, local = [], [], None
        for _ in range(iterations):
            found = self._iteration(visited)
            here = found.rows
            if self._refined(visited):
                self.overlap.forget_light()
                self._taken = None  # what it cost no longer says what it should
                self._changes += 1
            local = np.full((len(found.cost), 3), np.nan)
            local[here] = 0
            local[here, 1] = found.cost[here] / self._pixels(here)
            error, misfit = means(here, local, found.fits)
            errors.append(error)
            misfits.append(misfit)
            self.curiter += 1
            self._keep_mean()
        return Progress(
            self.curiter,
            np.array(errors),
            np.array(misfits),
            len(here),
            local if self.p.record_local_error else None,
            self.on.get(self.likelihood.scale).astype(np.float64) if self.p.floating_intensities else None,
        )

    def finish(self) -> None:
        """See `ptystream.engine.Engine.finish`. The last step is judged too, by what it cost."""
        self.sight.subpix = self._shifting  # as where it began; who looked at the coverage since has seen what would follow
        for _ in range(LAST_TRIES):
            if self._taken is None or self._mean is not None or not self._is_followed():
                break
            found = self.likelihood.descend(self.tiles, probes=False)
            if not self._taken_back(self._cost(found)):
                break
        super().finish()

    def _is_followed(self) -> bool:
        """Whether the last iteration visited every frame there is, as it is now."""
        followed = int(np.count_nonzero(self._followed))
        return len(self._followed) == self.reconstruction.pods.length and self._count() == followed > 0

    def _count(self) -> int:
        """Frames there are, on all ranks."""
        return int(self.context.ranks.total(np.array([sum(map(len, self.tiles))]))[0])

    def _forget(self) -> None:
        """The cost is another one from here on."""
        self.conjugate.forget()
        self._taken = None

    # ------------------------------------------------------------------ one iteration

    def _iteration(self, visited: Sequence[Tile]) -> Descent:
        """One step; what was found before it."""
        self.sight.subpix = self._subpix()
        if self.sight.subpix != self._shifting:
            self._shifting = self.sight.subpix
            self._forget()
        self.likelihood.configure(self.p)
        self._straighten()
        do_probe = self.p.probe_update_start <= self.curiter
        if do_probe:
            self._confine()
        found = self.likelihood.descend(visited, probes=do_probe)
        rows = found.rows
        self._there = self._count()
        if not len(rows):
            return found
        share = self._share(rows)
        if len(rows) == self._there:
            self.overlap.remember([lit for _, lit in found.objects])
        prior = self._prior(rows) if self.p.reg_del2 else None
        cost = self._cost(found, prior)
        if share == 1 and self._taken_back(cost):
            return found
        if self.p.floating_intensities and do_probe and len(rows) == self._there:
            self._level(found, rows)
        powers = [power for _, power in (*found.objects, *found.probes)]
        names = self._names("object") + (self._names("probe") if do_probe else [])
        self.precondition.begin(self.p, self.curiter, dict(zip(names, powers, strict=True)))
        gradient = self._gradient(found, prior)
        steps = self.conjugate.turn(gradient, self.precondition, dict(self._storages()), share)
        of_objects = [steps[name] for name in self._names("object")]
        of_probes = [steps[name] for name in self._names("probe")] if do_probe else None
        every = self.p.poly_line_coeffs == "all"
        curve = self.likelihood.along(visited, of_objects, of_probes, every=every)
        if prior is not None:
            slope, curvature = prior[0].line(self._objects(), of_objects, prior[1])
            curve[:3] += curvature, slope, curvature
        self._taken = Taken(cost, float(curve[1]), step_length(curve, every=every), steps)
        self._move(steps, self._taken.length)
        return found

    def _cost(self, found: Descent, prior: tuple[Smoothness, float] | None = None) -> float:
        """Of the frames visited and of the prior; None: made here where there is one."""
        if prior is None and self.p.reg_del2:
            prior = self._prior(found.rows)
        return float(found.cost[found.rows].sum()) + (prior[0].value(self._objects(), prior[1]) if prior is not None else 0.0)

    def _objects(self) -> list[Any]:
        return [storage.data for storage in self.reconstruction.objects.values()]

    def _confine(self) -> None:
        """Bring probes into their supports before they are first updated: gradients keep to these, so they stay there."""
        for name, storage in self._probes():
            if name in self._confined:
                continue
            self._confined.add(name)
            inside = support(self.on, storage.data.copy(), self.p)
            if (inside != storage.data).any():
                storage.data = inside
                self._forget()

    def _taken_back(self, cost: float) -> bool:
        """Whether the last step made the cost larger; a part of it then is taken back."""
        held, taken = dict(self._storages()), self._taken
        if taken is None or any(held[name].data.shape != step.shape for name, step in taken.steps.items()):
            return False
        shorter = taken.shortened(cost)
        if shorter is not None:
            self._move_again(taken, shorter)
            self._taken = replace(taken, length=shorter)
        return shorter is not None

    def _gradient(self, found: Descent, prior: tuple[Smoothness, float] | None) -> dict[str, Any]:
        """Of the whole cost, the probe's within its supports."""
        gradient = dict(zip(self._names("object"), (num for num, _ in found.objects), strict=True))
        if prior is not None:
            for field, more in zip(gradient.values(), prior[0].gradients(self._objects(), prior[1]), strict=True):
                field += more
        for name, (num, _) in zip(self._names("probe"), found.probes, strict=bool(found.probes)):
            gradient[name] = support(self.on, num, self.p)
        return self._within(gradient)

    def _move(self, steps: Fields, length: float) -> None:
        """Probe and object += length · steps."""
        held = dict(self._storages())
        for name, step in steps.items():
            scaled(self.on, 1.0, held[name].data, length, step, out=held[name].data)

    def _move_again(self, taken: Taken, length: float) -> None:
        """Put probe and object where the step that was taken leads with another length."""
        self._move(taken.steps, length - taken.length)

    def _within(self, fields: Fields) -> dict[str, Any]:
        """The part of a gradient or a direction, by name, along which probes and objects stay what they are to be: linear in
        the energy, where they are."""
        found = dict(fields)
        for names, group in self._groups():
            if all(name in found for name in names):
                found.update(zip(names, linear_part(self.on.xp, group.t, [found[name] for name in names]), strict=True))
        return found

    def _straighten(self) -> None:
        """Probes and objects that are to be linear in the energy made so: they may have started otherwise, or have grown."""
        held = dict(self._storages())
        for names, group in self._groups():
            for name, data in zip(names, linear_part(self.on.xp, group.t, [held[n].data for n in names]), strict=True):
                held[name].data = data

    def _groups(self) -> list[tuple[list[str], Dispersion]]:
        """(names as of `_storages`, group) of everything linear in the energy."""
        held = self.reconstruction
        kinds = ("probe", held.probe_dispersion), ("object", held.object_dispersion)
        return [([f"{kind} {name}" for name in group.names], group) for kind, groups in kinds for group in groups]

    def _level(self, found: Descent, rows: NDArray[np.int64]) -> None:
        """Put what all floating intensities have in common into the probes: their mean becomes 1, and the cost stays."""
        mean = float(self.likelihood.scale[self.on.put(rows)].mean())
        factor: Any = self.real.type(np.sqrt(mean))
        self.likelihood.scale /= self.real.type(mean)
        for (name, storage), (num, _) in zip(self._probes(), found.probes, strict=True):
            storage.data *= factor
            num /= factor
            self.conjugate.rescale(name, factor)

    def _share(self, rows: NDArray[np.int64]) -> float:
        """Unchanged frames in common with the last iteration, over the larger number; 0 where not all are visited."""
        now = np.zeros(self.reconstruction.pods.length, np.bool_)
        now[rows] = len(rows) == self._there
        common = int(np.count_nonzero(now[: len(self._followed)] & self._followed))
        before, self._before = self._before, int(np.count_nonzero(now))
        self._followed = now
        return common / max(before, self._before, 1)

    def _prior(self, visited: NDArray[np.int64]) -> tuple[Smoothness, float]:
        """The smoothness of the object, and its amplitude beside these frames of those there are."""
        held = self.reconstruction
        key = held.pods.length, self._changes, [(o.offset, o.shape) for o in held.objects.values()]
        if self._smoothness is None or self._smoothness[0] != key:
            rows = self.context.ranks.exchange(rows_of(self.tiles))
            self._smoothness = key, Smoothness(self.on, seen(held, rows), self.real)
        smoothness = self._smoothness[1]
        counts = int(self._pixels(visited).sum()) * self.likelihood.power(self.tiles)
        return smoothness, self.p.reg_del2_amplitude * counts / (8 * smoothness.pixels**2)

    def _pixels(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pixels of the detector of each of these rows."""
        sizes = np.zeros(1 + max(self.frames), np.int64)
        for scan, store in self.frames.items():
            sizes[scan] = np.prod(store.shape)
        counts: NDArray[np.int64] = sizes[self.reconstruction.pods.frame[rows, 0]]
        return counts

    def _probes(self) -> list[tuple[str, Storage]]:
        return [(name, storage) for name, storage in self._storages() if name.startswith("probe ")]

    def _names(self, kind: str) -> list[str]:
        return [name for name, _ in self._storages() if name.startswith(f"{kind} ")]
