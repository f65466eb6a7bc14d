"""The fused operations that a profile shows to matter: one contract, a CPU form (`cpu`) and a GPU form (`gpu`).

They work on one tile: some frames of one scan. Arrays live where the form runs and are contiguous.

    waves, out, projected   (frame, y, x) complex
    f                       (pod, frame, y, x) complex: transformed waves
    probes                  (view, y, x) complex, which (frame,) int64: the view that a frame sees
    obj, num, den           (y, x): one object layer, or sums on its canvas (complex, real)
    corner                  (frame, 2) int64: lattice coordinates of a frame's first object pixel
    origin                  (row, column): lattice coordinates of the canvas' first pixel
    weight                  (frame,) real: factor w on the model amplitude
    counts                  (frame of the slab, y, x), row (frame,) int64: where in it a frame lies
    mask                    (y, x) uint8: 1 where a pixel is valid in every frame; counts >= limit and NaN are not
    layer                   (frame,) int64: the layer that a frame adds to
    remainder               (frame, 2) real: d of the shift S_d, pixels, on a periodic frame

Sums are added to what is there. Errors and sums over pixels are float64, (frame,).
"""

from __future__ import annotations

from typing import Any, Protocol


class Kernels(Protocol):
    """What both forms offer."""

    def form(
        self, waves: Any, probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, c: float, out: Any
    ) -> None:
        """out = (1 - c) ψ + c w P O."""

    def model(self, probes: Any, which: Any, obj: Any, origin: Any, corner: Any, weight: Any, out: Any) -> None:
        """out = w P O."""

    def modulus(self, f: Any, counts: Any, row: Any, mask: Any, limit: float, bound: float, epsilon: float, error: Any) -> None:
        """Put measured amplitudes √I on f, in place; error = mean over valid pixels of (A - √I)², A = √(Σ_pods |f|²).

        Invalid pixels keep the model's amplitude. With a power `bound` >= 0 a frame whose error is not above it stays as
        it is; one above is pulled as far as √(bound / error) of the way back to the model. `epsilon` is added to A before
        dividing by it.
        """

    def misfit(
        self, f: Any, counts: Any, row: Any, mask: Any, limit: float, intensity: Any, amplitude: Any, photon: Any, valid: Any
    ) -> None:
        """Sums over valid pixels of (√M - √I)² and (M - I)²/(I + 1), and their number; M = Σ_pods |f|².

        `intensity` (y, x), real, holds M of the last frame afterwards.
        """

    def update(
        self,
        waves: Any,
        projected: Any,
        probes: Any,
        which: Any,
        obj: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        a: float,
        b: float,
        change: Any,
        sums: tuple[Any, Any] | None,
    ) -> None:
        """ψ += b f + a w P O - (a + b) ψ with f = `projected`; change += mean |Δψ|² of each frame.

        With `sums` = (num, den) also the object update while the wave is at hand: num += w conj(P) ψ, den += w² |P|².
        """

    def object_sums(self, waves: Any, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
        """num += w conj(P) ψ; den += w² |P|²."""

    def illumination(self, probes: Any, which: Any, origin: Any, corner: Any, weight: Any, den: Any) -> None:
        """den += w² |P|²."""

    def probe_sums(self, waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, layer: Any, num: Any, den: Any) -> None:
        """num[layer] += w conj(O) ψ; den[layer] += w² |O|²; num, den: (layer, y, x)."""

    def probe_terms(self, waves: Any, obj: Any, origin: Any, corner: Any, weight: Any, num: Any, den: Any) -> None:
        """num = w conj(O) ψ, den = w² |O|² of each frame, not summed; both (frame, y, x)."""

    def shifted_views(self, probes: Any, layer: Any, remainder: Any, out: Any) -> None:
        """out = S_d P of the layer that each frame sees, bilinear."""

    def add_shifted(self, stack: Any, layer: Any, remainder: Any, out: Any) -> None:
        """out[layer] += S_d of each frame of `stack` (frame, y, x), real or complex, bilinear; out: (layer, y, x)."""

    def residual(
        self,
        waves: Any,
        projected: Any,
        probes: Any,
        which: Any,
        obj: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        a: float,
        b: float,
        change: Any,
    ) -> None:
        """ψ as in `update`, and projected = ψ - w P O in place; `waves` None: ψ was w P O and is not kept."""

    def norm_sums(self, powers: Any, peak: Any, share: float, origin: Any, corner: Any, den: Any) -> None:
        """den += share · powers + (1 - share) · peak on the canvas; powers (frame, y, x), peak (frame,), both real."""

    def object_step(
        self,
        residual: Any,
        probes: Any,
        which: Any,
        origin: Any,
        corner: Any,
        weight: Any,
        den: Any,
        within: Any,
        step: float,
        obj: Any,
    ) -> None:
        """O += step w conj(P) r / den where den > 0; `within`: lattice coordinates of the first pixel of `den`."""

    def take_step(self, num: Any, den: Any, step: float, out: Any) -> None:
        """out += step num / den where den > 0; all (y, x)."""
