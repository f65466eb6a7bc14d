"""DM_3dBragg: the difference map on rocking curves, with a support of the sample.

Berenguer et al., Phys. Rev. B 88, 144101 (2013); for the support Marchesini et al., Phys. Rev. B 68, 140101 (2003). A slice of
a volume is a view like any other to the sums of object and probe; only the way to the detector is three-dimensional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import field_validator

from ptystream.engine import Context
from ptystream.model.bragg import extrusion
from ptystream.params.base import Branch, parameter
from ptystream.reconstruction import Reconstruction, Storage, Volume
from ptystream.scan.block import FrameStore

from .constraints import support
from .dm import DM, DMParameters
from .overlap import Overlap
from .sample_support import Lattice, bounds, inside, layer_profile, rod_profile, smoothed_profile


class ShrinkwrapParameters(Branch):
    """Shrink wrap settings."""

    smooth: float | None = parameter(1.0, lower=0.3)
    """Shrink wrap smoothing parameter in pixels

    Sigma of gaussian with which to smooth object profile before applying shrink wrap. Pass None for no smoothing. Values < .3
    make little sense. (ptypy's filter is √2 wider than this sigma.)"""

    cutoff: float = parameter(0.5, steerable=True)
    """Shrink wrap cutoff parameter

    The support is truncated where the object profile has decayed to this value relative to the maximum."""

    monotonic: bool = parameter(True, steerable=True)
    """Require the object profile to be monotonic

    If the object profile increases again after the maximum, then the support is cut off. Set the cutoff parameter low to make
    this the dominating criterion."""

    start: int = parameter(10)
    """Start shrink wrap after this iteration

    Before it there is no support."""

    plot: bool = parameter(False)
    """Pass shrink wrap information to the plot client

    Puts shrink wrap information in the runtime dict: `shrinkwrap` of `iter_info` is [s, profile, low, high], metres."""

    @field_validator("cutoff")
    @classmethod
    def _cutoff(cls, value: float) -> float:
        if not 0 <= value < 1:
            raise ValueError("must be from 0 to below 1, a part of the maximum")
        return value


class SampleSupportParameters(Branch):
    """Sample support settings"""

    type: Literal["thinlayer", "rod"] = parameter("thinlayer")
    """Sample support geometry

    Options are 'thinlayer' for one-dimensional support as
    function of z, 'rod' for one-dimensional radial support around
    the z axis."""

    size: float = parameter(2e-7)
    """Support thickness or radius

    Metres: the thickness of the layer about z = 0, or the diameter of the rod about x = y = 0. This parameter is ignored when
    shrink wrapping is used."""

    coefficient: float = parameter(0.1, lower=0.0, upper=1.0, steerable=True)
    """Scaling of region outside the support

    Sample amplitude is multiplied by this value outside the support region, after each update of the object"""

    shrinkwrap: ShrinkwrapParameters | None = ShrinkwrapParameters()
    """Shrink wrap settings. None for no shrink wrap."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: float) -> float:
        if not value > 0:
            raise ValueError("must be above 0 (metres)")
        return value


class DMBragg3dParameters(DMParameters):
    """The difference map in three dimensions, on rocking curves."""

    name: str = parameter("DM_3dBragg")
    """Name of the engine."""

    probe_support: float | None = parameter(0.7, lower=0.0)
    """Valid probe area as fraction of the probe frame

    A disc in the plane across the beam, about its middle, that goes with the beam through the volume; None: no support.
    (ptypy's engine refuses every value but None.)"""

    sample_support: SampleSupportParameters | None = SampleSupportParameters()
    """Sample support settings

    None: no support of the sample."""

    extruded: bool = parameter(True, ours=True)
    """Whether the probe stays the same all along the beam; otherwise each slice of it is free, as in ptypy."""


class VolumeOverlap(Overlap):
    """The overlap constraint with a beam that is spread along itself and a sample that is confined."""

    iteration = 0
    more: dict[str, Any]

    def supported(self, storage: Storage, data: Any, den: Any) -> Any:
        """See `Overlap.supported`. An update P = num / den is the least-squares solution with weight den; among beams that are
        the same all along it is (Eᵀ W E)⁻¹ Eᵀ W P, with W the weight of a slice."""
        assert isinstance(storage, Volume) and storage.bragg is not None
        plain = support(self.on, data, self.p.model_copy(update={"probe_support": None}))
        host, matrix = self.on.get(plain), extrusion(storage.bragg)
        n3, n1, n2 = host.shape
        if self.p.extruded:
            weight = np.repeat(self.on.get(den).mean(axis=(1, 2), dtype=np.float64), n1)
            weight /= max(float(weight.max()), 1e-300)
            weighted = matrix.multiply(weight[:, None]).tocsr()
            normal = (matrix.T @ weighted).toarray()
            normal[np.diag_indices_from(normal)] += 1e-12 * normal.max()
            across = np.linalg.solve(normal, weighted.T @ host.reshape(n3 * n1, n2))
            host = (matrix @ across).reshape(host.shape)
        if self.p.probe_support is not None:
            rows = matrix.shape[1]
            y, x = np.arange(rows)[:, None] - rows // 2, np.arange(n2)[None] - n2 // 2
            disc = np.pi * (y**2 + x**2) < self.p.probe_support * n1 * n2
            host = host * ((matrix @ disc.astype(float)).reshape(host.shape) > 0.5)
        return self.on.put(np.ascontiguousarray(host, self.sight.complex))

    def confine(self, storage: Storage, lit: Any) -> None:
        """Multiply what lies outside the support with its coefficient."""
        asked = self.p.sample_support
        assert isinstance(storage, Volume) and storage.bragg is not None
        if asked is None:
            return
        r1, r2 = storage.pixel_size_m or (1.0, 1.0)
        at = Lattice(storage.corner, storage.data.shape, (storage.slice_m, r1, r2), storage.bragg.theta_deg)
        shrink, middle = asked.shrinkwrap, (0.0, 0.0)
        if shrink is None:
            low, high = -asked.size / 2, asked.size / 2
        elif self.iteration < shrink.start:
            return
        else:
            make = layer_profile if asked.type == "thinlayer" else rod_profile
            profile = make(np.abs(self.on.get(storage.data)).astype(float), self.on.get(lit).astype(float), at)
            value = smoothed_profile(profile.value, shrink.smooth)
            if asked.type == "rod":  # the profile goes on beyond its axis as its own mirror
                both = np.concatenate([profile.value[:0:-1], profile.value])
                value = smoothed_profile(both, shrink.smooth)[len(profile.value) - 1 :]
            low, high = bounds(profile.s, value, shrink.cutoff, monotonic=shrink.monotonic)
            middle = profile.middle
            if shrink.plot:
                self.more["shrinkwrap"] = [profile.s, value, low, high]
        outside = self.on.put(~inside(asked.type, at, low, high, middle))
        factor = storage.data.real.dtype.type(asked.coefficient)
        storage.data *= self.on.xp.where(outside, factor, storage.data.real.dtype.type(1))


class DMBragg3d(DM):
    """Difference map of three-dimensional exit waves."""

    Parameters = DMBragg3dParameters
    takes_volumes = True

    def start(
        self,
        reconstruction: Reconstruction,
        frames: Mapping[int, FrameStore],
        context: Context,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """See `ptystream.engine.Engine.start`. Raises `ValueError` for storages that are no volumes."""
        storages = (*reconstruction.probes.values(), *reconstruction.objects.values())
        if not all(isinstance(storage, Volume) and storage.bragg is not None for storage in storages):
            raise ValueError(f"engines.*.name: {self.p.name}: needs scans with `name: Bragg3dModel`")
        super().start(reconstruction, frames, context, state)

    def make_overlap(self) -> Overlap:
        """With the supports of beam and sample."""
        return VolumeOverlap(self.on, self.reconstruction, self.sight)

    def begin(self) -> None:
        """Tell the supports how far the engine is."""
        assert isinstance(self.overlap, VolumeOverlap)
        self.overlap.iteration, self.overlap.more = self.curiter, self.more
