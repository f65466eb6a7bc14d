"""One tile of frames on its way from the probe to the detector, and the gradient on its way back.

The order of everything is docs/explanation/multislice.md's: current, phase plate, aberrations, tilt before, shift, slices,
tilt after, detector. Transforms are orthonormal and modes are summed, so that a probe holds the photons of a pattern.

Gradients g_X are ∂L/∂conj(X) of complex quantities, dL = 2 Re Σ conj(g_X) dX, and plain derivatives of real ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import Backend
from .optics import Optics


@dataclass(slots=True)
class View:
    """What the frames of a tile see; arrays live on the engine's device. None: there is nothing of the kind."""

    rows: Any
    """Rows of the quantities that frames have of their own. Shape (frame,), int64."""
    corner: Any
    """First pixel of each frame's view in the object's array. Shape (frame, 2), int64, on the host."""
    scenario: Any
    """Which probe each frame sees. Shape (frame,), int64."""
    current: Any = None
    """Factor on the amplitude of the probe; its sign plays no part. Shape (frame,), real."""
    plates: Any = None
    """Factors on the probe's spectrum. Shape (frame or 1, y, x), complex."""
    lens: Any = None
    """Which aberrations each frame has. Shape (frame,), int64."""
    before: Any = None
    inside: Any = None
    after: Any = None
    """Tilts (y, x) of each frame, radians. Shape (frame, 2), real."""
    shift: Any = None
    """Part of the position that the corner leaves, pixels (y, x). Shape (frame, 2), real."""
    defocus: Any = None
    """Distance of the image plane of each frame, metres. Shape (frame,), real."""


@dataclass(slots=True)
class Source:
    """Probe and object as they are during one pass; made once, read by all tiles."""

    waves: Any
    """Probes. Shape (scenario, mode, y, x), complex."""
    spectra: Any
    """Their transforms; None where waves are all that is needed."""
    object: Any
    """Shape (mode, slice, y, x), complex."""
    lenses: Any = None
    """exp(-iχ) M of each set of aberrations. Shape (set, y, x), complex."""


@dataclass(slots=True)
class Wanted:
    """Which gradients are asked for."""

    object: bool = True
    probe: bool = True
    positions: bool = False
    tilts: bool = False
    current: bool = False
    aberrations: bool = False


@dataclass(slots=True)
class Sums:
    """Gradients, added up over tiles; of what each frame has of its own, rows of arrays that tiles share."""

    object: Any = None
    probe: Any = None
    """Of the waves, or with `Source.spectra` of these."""
    positions: Any = None
    """Shape (row, 2), pixels."""
    tilts: Any = None
    """Shape (row, 6): before, inside, after."""
    current: Any = None
    aberrations: Any = None
    """Shape (set, coefficient)."""
    background: Any = None
    """Shape (y, x) of a pattern."""


@dataclass(slots=True)
class Journey:
    """A tile under way. `forward` first, then `backward`; what that needs is kept in between."""

    on: Backend
    optics: Optics
    view: View
    source: Source
    wanted: Wanted
    functions: Any = None
    """A_j = ∂χ/∂C_j, where aberrations are asked for. Shape (coefficient, y, x), real."""
    _held: dict[str, Any] = field(default_factory=dict)
    _incident: list[Any] = field(default_factory=list)
    """ψ_s of each slice. Shape (frame, probe mode, object mode, y, x); of the first the object mode has length 1."""
    _slices: list[Any] = field(default_factory=list)
    """O_s that each frame sees. Shape (frame, 1, object mode, y, x)."""
    _spectra: list[Any] = field(default_factory=list)
    """Transforms of ψ_s behind a propagator, where tilts inside are asked for."""

    # ------------------------------------------------------------------ to the detector

    def forward(self) -> Any:
        """Waves on the detector, zero frequency at [0, 0] in the far field. Shape (frame, probe mode, object mode, y, x)."""
        wave = self._illuminate()[:, :, None]
        count = self.source.object.shape[1]
        for s in range(count):
            part = self._slice(s)
            self._incident.append(wave)
            self._slices.append(part)
            wave = wave * part
            if s + 1 < count:
                wave = self._on(s, wave)
        if self.view.after is not None:
            wave = wave * self._tilt("after")
            self._held["exit"] = wave
        if self.optics.near:
            spectrum = self.on.fft2(wave.copy()) * self._transfer()
            self._held["spectrum"] = spectrum
            return self.on.ifft2(spectrum.copy())
        if self.optics.middle is not None:
            wave = wave * self.optics.middle
        elif "exit" in self._held:
            wave = wave.copy()
        wave = self.on.fft2(wave)
        wave *= self.optics.edge
        return wave

    def _illuminate(self) -> Any:
        """The waves that arrive at the object. Shape (frame, probe mode, y, x)."""
        view, source, on = self.view, self.source, self.on
        if source.spectra is None:
            first = source.waves[view.scenario]
            self._held["unscaled"] = first
            return first if view.current is None else first * on.xp.abs(view.current)[:, None, None, None]
        spectrum = source.spectra[view.scenario]
        self._held["unscaled"] = spectrum
        if view.current is not None:
            spectrum = spectrum * on.xp.abs(view.current)[:, None, None, None]
        if view.plates is not None:
            spectrum = spectrum * view.plates[:, None]
        if view.lens is not None:
            spectrum = spectrum * source.lenses[view.lens][:, None]
            self._held["lens"] = spectrum
        if view.before is not None:
            wave = on.ifft2(spectrum.copy()) * self._tilt("before")[:, 0]
            self._held["tilted"] = wave
            spectrum = on.fft2(wave.copy())
        if view.shift is not None:
            self._held["shift"] = self.optics.moved(on.xp, view.shift) * self.optics.limit
            spectrum = spectrum * self._held["shift"][:, None]
            self._held["shifted"] = spectrum
        return on.ifft2(spectrum.copy())

    def _tilt(self, name: str) -> Any:
        """Shape (frame, 1, 1, y, x)."""
        key = f"tilt {name}"
        if key not in self._held:
            self._held[key] = self.optics.turned(self.on.xp, getattr(self.view, name))[:, None, None]
        return self._held[key]

    def _slice(self, number: int) -> Any:
        """What the frames see of a slice, band limited."""
        whole = self.source.object[:, number]
        height, width = self.optics.shape
        seen = self.on.xp.empty((len(self.view.corner), len(whole), height, width), whole.dtype)
        for k, (y, x) in enumerate(self.view.corner):
            seen[k] = whole[:, y : y + height, x : x + width]
        seen = self.on.fft2(seen)
        seen *= self.optics.limit
        return self.on.ifft2(seen)[:, None]

    def _way(self, number: int) -> Any:
        """The propagator from a slice to the next. Shape (frame or 1, 1, 1, y, x)."""
        key = f"way {number}"
        if key not in self._held:
            way = self.optics.propagators[number][None]
            if self.view.inside is not None:
                way = way * self.optics.oblique(self.on.xp, self.view.inside, self.optics.distances_m[number])
            self._held[key] = way[:, None, None]
        return self._held[key]

    def _on(self, number: int, wave: Any) -> Any:
        spectrum = self.on.fft2(wave)
        spectrum *= self._way(number)
        if self.wanted.tilts and self.view.inside is not None:
            self._spectra.append(spectrum.copy())
        return self.on.ifft2(spectrum)

    def _transfer(self) -> Any:
        """From the exit wave to an image plane. Shape (frame, 1, 1, y, x)."""
        if "transfer" not in self._held:
            o, view, xp = self.optics, self.view, self.on.xp
            q2 = o.squared
            phase = o.wavelength_m * q2 * view.defocus[:, None, None] + 0.5 * o.spherical_m * o.wavelength_m**3 * q2**2
            if view.inside is not None:
                angle = view.inside[:, :, None, None]
                phase = phase + 2 * view.defocus[:, None, None] * (o.frequency[0] * angle[:, 0] + o.frequency[1] * angle[:, 1])
            transfer = xp.exp(-1j * np.pi * phase) * o.limit
            self._held["transfer"] = (transfer if o.middle is None else transfer * o.middle)[:, None, None]
        return self._held["transfer"]

    def curvature(self, sums: Sums) -> None:
        """Add 2 Σ |∂ψ/∂x|² of what each frame has of its own, after `forward`: how sharply patterns depend on it."""
        view, held, optics = self.view, self._held, self.optics
        if sums.positions is not None and view.shift is not None:
            pixel = self.on.xp.asarray(optics.pixel_m, sums.positions.dtype)
            sums.positions[view.rows] += self._squares(held["shifted"][:, :, None], optics.frequency, 2 * np.pi) * pixel**2
        if sums.tilts is not None:
            turn = 2 * np.pi / optics.wavelength_m
            if view.before is not None:
                sums.tilts[view.rows, 0:2] += self._squares(held["tilted"][:, :, None], optics.place, turn)
            for spectrum, distance in zip(self._spectra, optics.distances_m, strict=False):
                sums.tilts[view.rows, 2:4] += self._squares(spectrum, optics.frequency, 2 * np.pi * distance)
            if optics.near and view.inside is not None:
                along = self._squares(held["spectrum"], optics.frequency, 2 * np.pi)
                sums.tilts[view.rows, 2:4] += along * view.defocus[:, None] ** 2
            if view.after is not None:
                sums.tilts[view.rows, 4:6] += self._squares(held["exit"], optics.place, turn)
        if sums.current is not None and view.current is not None:
            first = held["unscaled"]
            sums.current[view.rows] += 2 * (first.real**2 + first.imag**2).sum(axis=(1, 2, 3))
        if sums.aberrations is not None and view.lens is not None:
            power = (held["lens"].real ** 2 + held["lens"].imag ** 2).sum(axis=1)
            each = 2 * self.on.xp.tensordot(power, self.functions**2, axes=((1, 2), (1, 2)))
            for k, number in enumerate(self.on.get(view.lens).tolist()):
                sums.aberrations[number] += each[k]

    def _squares(self, wave: Any, axes: tuple[Any, Any], factor: float) -> Any:
        """2 Σ (factor × axis)² |wave|², summed over modes. Shape (frame, 2)."""
        power = (wave.real**2 + wave.imag**2).sum(axis=(1, 2))
        return 2 * factor**2 * self._moments(power, (axes[0] ** 2, axes[1] ** 2))

    # ------------------------------------------------------------------ and back

    def backward(self, gradient: Any, sums: Sums) -> None:
        """Add to `sums`; `gradient`: that of the waves on the detector, may be overwritten."""
        on, view, tilts = self.on, self.view, self.wanted.tilts
        if self.optics.near:
            gradient = on.fft2(gradient)
            if tilts and view.inside is not None:
                slope = self._along(gradient, self._held["spectrum"])
                sums.tilts[view.rows, 2:4] += slope * view.defocus[:, None]
            gradient *= self._transfer().conj()
        else:
            gradient *= self.optics.edge
        back = on.ifft2(gradient)
        if self.optics.middle is not None and not self.optics.near:
            back *= self.optics.middle.conj()
        if view.after is not None:
            if tilts:
                sums.tilts[view.rows, 4:6] += self._across(back, self._held["exit"])
            back *= self._tilt("after").conj()
        for s in reversed(range(len(self._slices))):
            incident = self._incident[s]
            if self.wanted.object:
                self._add_slice(s, (back * incident.conj()).sum(axis=1), sums.object)
            back *= self._slices[s].conj()
            if s == 0:
                break
            back = on.fft2(back)
            if tilts and view.inside is not None:
                slope = self._along(back, self._spectra[s - 1]) * self.optics.distances_m[s - 1]
                sums.tilts[view.rows, 2:4] += slope
            back *= self._way(s - 1).conj()
            back = on.ifft2(back)
        self._illuminated(back.sum(axis=2), sums)

    def _along(self, gradient: Any, spectrum: Any) -> Any:
        """∂/∂t of exp(-2πi q·t) on a spectrum: 4π Σ q Im(conj(g) ψ), summed over modes. Shape (frame, 2)."""
        product = (gradient.conj() * spectrum).imag.sum(axis=(1, 2))
        return self._moments(product, self.optics.frequency) * (4 * np.pi)

    def _across(self, gradient: Any, wave: Any) -> Any:
        """∂/∂t of exp(2πi/λ x·t) on a wave: -(4π/λ) Σ x Im(conj(g) ψ). Shape (frame, 2)."""
        product = (gradient.conj() * wave).imag.sum(axis=(1, 2))
        return self._moments(product, self.optics.place) * (-4 * np.pi / self.optics.wavelength_m)

    def _moments(self, product: Any, axes: tuple[Any, Any]) -> Any:
        """Σ over pixels of product × (axis y, axis x). Shape (frame, 2)."""
        xp = self.on.xp
        rows, columns = product.sum(axis=2), product.sum(axis=1)
        return xp.stack([(rows * axes[0][:, 0]).sum(axis=1), (columns * axes[1][0]).sum(axis=1)], axis=1)

    def _add_slice(self, number: int, gradient: Any, total: Any) -> None:
        """Band limit the gradient of what frames see (frame, object mode, y, x), and add it to the slice's."""
        height, width = self.optics.shape
        gradient = self.on.fft2(gradient)
        gradient *= self.optics.limit
        gradient = self.on.ifft2(gradient)
        whole = total[:, number]
        for k, (y, x) in enumerate(self.view.corner):
            whole[:, y : y + height, x : x + width] += gradient[k]

    def _illuminated(self, gradient: Any, sums: Sums) -> None:
        """From the waves that arrive at the object back to the probe."""
        on, view, wanted, held = self.on, self.view, self.wanted, self._held
        if self.source.spectra is None:
            self._current(gradient, sums)
            return
        gradient = on.fft2(gradient)
        if wanted.positions and view.shift is not None:
            pixel = on.xp.asarray(self.optics.pixel_m, gradient.real.dtype)
            slope = self._along(gradient[:, :, None], held["shifted"][:, :, None]) * pixel
            sums.positions[view.rows] += slope
        if view.shift is not None:
            gradient *= held["shift"].conj()[:, None]
        if view.before is not None:
            back = on.ifft2(gradient)
            if wanted.tilts:
                sums.tilts[view.rows, 0:2] += self._across(back[:, :, None], held["tilted"][:, :, None])
            back *= self._tilt("before")[:, 0].conj()
            gradient = on.fft2(back)
        if view.lens is not None:
            if wanted.aberrations:
                product = (gradient.conj() * held["lens"]).imag.sum(axis=1)
                slopes = 2 * on.xp.tensordot(product, self.functions, axes=((1, 2), (1, 2)))
                for k, number in enumerate(on.get(view.lens).tolist()):
                    sums.aberrations[number] += slopes[k]
            gradient *= self.source.lenses[view.lens].conj()[:, None]
        if view.plates is not None:
            gradient *= view.plates.conj()[:, None]
        self._current(gradient, sums)

    def _current(self, gradient: Any, sums: Sums) -> None:
        view, xp = self.view, self.on.xp
        if view.current is not None:
            if self.wanted.current:
                slope = 2 * (gradient.conj() * self._held["unscaled"]).real.sum(axis=(1, 2, 3))
                sums.current[view.rows] += slope * xp.where(view.current < 0, -1, 1)
            gradient *= xp.abs(view.current)[:, None, None, None]
        if self.wanted.probe:
            for k, number in enumerate(self.on.get(view.scenario).tolist()):
                sums.probe[number] += gradient[k]
