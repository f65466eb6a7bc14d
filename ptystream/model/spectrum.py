"""Coherence: which pods a frame has, from modes, energies and how probe and object depend on the energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import field_validator, model_validator

from ptystream.params.base import Branch, parameter

MAX_PODS = 10_000


class CoherenceParameters(Branch):
    """Coherence parameters."""

    num_probe_modes: int = parameter(1, lower=0)
    """Number of probe modes; 0 counts as 1"""

    num_object_modes: int = parameter(1, lower=0)
    """Number of object modes; 0 counts as 1"""

    energies: tuple[float, ...] = parameter((1.0,))
    """Photon energies in the beam, as factors on `data.energy`

    Their intensities add up on the detector. The pixel on the sample is that of the factor 1."""

    spectrum: tuple[float, ...] = parameter((1.0,), validated=(0.0, None))
    """Amplitude of relative energy bins if the probe modes have a different energy

    Share of each energy in the photons, one number per energy (they need not add up to 1); a single one: equal shares. (ptypy
    declares this parameter and does not use it.)"""

    object_dispersion: Literal["achromatic", "linear", "irregular"] | None = parameter(None)
    """Energy dispersive response of the object

    One of:
    - ``None`` or ``'achromatic'``: no dispersion
    - ``'linear'``: linear response model
    - ``'irregular'``: no assumption

    'irregular': an object of its own for each energy. 'linear': these are a + (E/E₀ - 1) b, with two free values in each
    pixel however many energies there are."""

    probe_dispersion: Literal["achromatic", "linear", "irregular"] | None = parameter(None)
    """Energy dispersive response of the probe

    One of:
    - ``None`` or ``'achromatic'``: no dispersion
    - ``'linear'``: linear response model
    - ``'irregular'``: no assumption

    As of the object. An achromatic probe is weighted by `spectrum`; the others begin with these shares and may change them."""

    @field_validator("energies")
    @classmethod
    def _energies(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(np.isfinite(e) and 0.01 <= e <= 100 for e in value) or len(set(value)) < len(value):
            raise ValueError("must be different factors from 0.01 to 100, at least one")
        return value

    @field_validator("spectrum")
    @classmethod
    def _spectrum(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(np.isfinite(s) and s >= 0 for s in value) or sum(value) <= 0:
            raise ValueError("must not be below 0, and not all 0")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if len(self.spectrum) not in (1, len(self.energies)):
            raise ValueError(f"spectrum: {self.spectrum}: must be one number, or one for each of {len(self.energies)} energies")
        if self.pods > MAX_PODS:
            raise ValueError(f"num_probe_modes × num_object_modes × energies is {self.pods}: must be at most {MAX_PODS}")
        return self

    @property
    def modes(self) -> tuple[int, int]:
        """Probe and object modes."""
        return max(1, self.num_probe_modes), max(1, self.num_object_modes)

    @property
    def pods(self) -> int:
        """Pods of a frame."""
        return self.modes[0] * self.modes[1] * len(self.energies)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each energy in the photons, sum 1."""
        given = np.ones(len(self.energies)) if len(self.spectrum) == 1 else np.array(self.spectrum)
        return tuple(float(s) for s in given / given.sum())

    @property
    def storages(self) -> tuple[int, int]:
        """Number of probe and object storages: one, or one per energy."""
        probe, object_ = (kind in ("linear", "irregular") for kind in (self.probe_dispersion, self.object_dispersion))
        return (len(self.energies) if probe else 1), (len(self.energies) if object_ else 1)


@dataclass(frozen=True, slots=True)
class PodPlan:
    """One pod of every frame of a scan."""

    probe: int
    """Number of the scan's probe storage, and so on."""
    probe_layer: int
    object: int
    object_layer: int
    energy: int
    share: float
    """Share of the photons that the pod's probe does not carry itself."""


def pods(coherence: CoherenceParameters) -> Sequence[PodPlan]:
    """Energies × probe modes × object modes, in this order."""
    probes, objects = coherence.storages
    probe_modes, object_modes = coherence.modes
    return [
        PodPlan(e if probes > 1 else 0, p, e if objects > 1 else 0, o, e, 1.0 if probes > 1 else coherence.shares[e])
        for e in range(len(coherence.energies))
        for p in range(probe_modes)
        for o in range(object_modes)
    ]
