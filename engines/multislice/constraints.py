"""What is done to the quantities between epochs, by the parameters of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ptystream.params.course import varies

from ..backend import Backend
from . import byhand
from .optics import Optics
from .page.values import ever
from .regularisers import window_between
from .setting import Setting

Change: TypeAlias = tuple[str, Callable[[Any], Any], str]
"""(quantity, what becomes of it, the parameter that says so)."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """Of one reconstruction; `p` are the parameters in force."""

    on: Backend
    p: Any
    optics: Optics
    real: np.dtype[Any]

    def before(self, setting: Setting, modes: int, home: Callable[[Any], Any]) -> Iterator[Change]:
        """Ahead of an epoch; `modes`: of the probe; `home`: from corrections of positions to those of the beginning."""
        xp = self.on.xp
        if setting["restart_from_vacuum"]:
            yield "object", xp.ones_like, "restart_from_vacuum"
        if setting["reset_positions"]:
            yield "positions", home, "reset_positions"
        if setting["keep_probe_states_orthogonal"] and modes > 1:
            yield "probe", lambda probe: byhand.orthogonal(xp, probe), "keep_probe_states_orthogonal"
        if setting["do_charge_flip"]:
            delta, beta = ((setting[f"cf_{n}_phase"], setting[f"cf_{n}_abs"]) for n in ("delta", "beta"))
            sigmas = pairs(setting["fancy_sigma"])
            yield "object", lambda o: byhand.flipped(xp, self.on.fft, o, delta, beta, sigmas), "do_charge_flip"

    def after(self, setting: Setting, distances_m: tuple[float, ...]) -> Iterator[Change]:
        """Behind a step that was taken; `distances_m`: of the slices."""
        xp = self.on.xp
        phase, absorption = (float(setting[f"apply_gaussian_filter{part}"]) for part in ("", "_amplitude"))
        if phase or absorption:
            name = "apply_gaussian_filter" if phase else "apply_gaussian_filter_amplitude"
            yield "object", lambda o: byhand.smoothed(xp, self.on.ndimage, o, phase, absorption), name
        if setting["beta_wedge"] and distances_m:
            pixels = (distances_m[0], *self.optics.pixel_m)
            yield "object", lambda o: byhand.without_wedge(xp, self.on.fft, o, setting["beta_wedge"], pixels), "beta_wedge"

    def confined(self, setting: Setting, probe: Any) -> Any:
        """A probe, or its gradient, with nothing of it beyond `probe_constraint_mask` where the weight is infinite."""
        outside = self.outside() if math.isinf(setting["probe_reg_constraint_weight"]) else None
        if outside is None:
            return probe
        spectrum = self.on.fft2(probe.copy())
        spectrum *= 1 - outside
        return self.on.ifft2(spectrum)

    def outside(self) -> Any:
        """1 where the probe's spectrum is not to be, zero frequency at [0, 0], (y, x); None: it may be everywhere."""
        given, shape = self.p.probe_constraint_mask, self.optics.shape
        if given is None and self.p.aperture_mask is not None:
            given = self._aperture()
        if given is None:
            return None
        if isinstance(given, float | int):
            y, x = (np.fft.fftfreq(n) for n in shape)
            return self.on.put((np.hypot(y[:, None], x) > 0.5 * float(given)).astype(self.real))
        if given.shape != tuple(shape):
            raise ValueError(f"probe_constraint_mask: shape {given.shape}: must be that of the model, {tuple(shape)}")
        return self.on.put((np.fft.ifftshift(given) == 0).astype(self.real))

    def _aperture(self) -> NDArray[Any]:
        """`aperture_mask` on the model's pixels, centred: one of a pattern's size may be given too."""
        given, shape = np.asarray(self.p.aperture_mask), tuple(self.optics.shape)
        if given.shape == shape:
            return given
        u, pad = int(self.p.upsample_pattern), int(self.p.data_pad)
        if given.ndim != 2 or tuple(u * n + 2 * pad for n in given.shape) != shape:
            raise ValueError(f"aperture_mask: shape {given.shape}: must be that of the patterns or of the model, {shape}")
        return np.asarray(np.pad(given.repeat(u, axis=0).repeat(u, axis=1), pad))

    def check(self) -> None:
        """Raises `ValueError` where an array that will be needed has another shape than the model."""
        if ever(self.p.probe_reg_constraint_weight):
            self.outside()
        if ever(self.p.window_weight) and not varies(self.p.window):
            self.window({"window": self.p.window})

    def window(self, setting: Setting | Mapping[str, Any]) -> Any:
        """Penalty on the probe, (y, x); None: there is none."""
        given, shape = setting["window"], self.optics.shape
        if given is None:
            return None
        penalty = np.asarray(given, float)
        penalty = window_between(shape, *penalty.tolist()) if penalty.shape == (2,) else penalty
        if penalty.shape != tuple(shape):
            wanted = f"[inner, outer], or an array of the model's shape {tuple(shape)}"
            raise ValueError(f"window: shape {penalty.shape}: must be {wanted}")
        return self.on.put(penalty.astype(self.real))


def pairs(given: Any) -> byhand.Sigmas | None:
    """`fancy_sigma` as widths of phase and absorption."""
    if given is None:
        return None
    if isinstance(given, int | float | str):
        return (given, float(given)), (given, float(given))
    phase, absorption = given
    return tuple(None if pair is None else (pair[0], float(pair[1])) for pair in (phase, absorption))  # type: ignore[return-value]
