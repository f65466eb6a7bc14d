"""Scans of one run that share a probe or an object: what must agree, and whose beginnings count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ptystream.model.scan_model import ScanModel


def faults(models: Mapping[str, ScanModel]) -> Iterator[tuple[str, str, str]]:
    """(path below `scans`, value, remedy) of everything that cannot be shared as asked for."""
    for label, model in models.items():
        for part in ("probe", "object"):
            owner = getattr(model.p.share, part)
            if owner is None:
                continue
            remedy = _fault(label, model, owner, models, part)
            if remedy is not None:
                yield f"{label}.share.{part}", owner, remedy


def _fault(label: str, model: ScanModel, owner: str, models: Mapping[str, ScanModel], part: str) -> str | None:
    other = models.get(owner)
    if other is None or owner == label:
        return f"must be the label of another scan of this run; known: {', '.join(sorted(set(models) - {label})) or 'none'}"
    if getattr(other.p.share, part) is not None:
        return f"scan {owner!r} shares its {part} itself: name the scan that it belongs to"
    if part == "probe" and (model.probe_per_frame or other.probe_per_frame):
        return "every frame has a probe of its own; share the object only"
    for what, value in _agreements(part):
        mine, its = value(model), value(other)
        if mine != its:
            return f"{what} must be the same: {mine!r} here, {its!r} for scan {owner!r}"
    return None


def _agreements(part: str) -> Sequence[tuple[str, Callable[[ScanModel], Any]]]:
    """What two scans must have in common, and how to see it."""
    which = ("probe", "object").index(part)

    def dispersion(model: ScanModel) -> Any:
        return (model.coherence.probe_dispersion, model.coherence.object_dispersion)[which] or "achromatic"

    always: list[tuple[str, Callable[[ScanModel], Any]]] = [
        ("the kind of model", lambda m: type(m).__name__),
        ("the pixel on the sample", _pixel),
        (f"num_{part}_modes", lambda m: m.coherence.modes[which]),
        (f"coherence.{part}_dispersion", dispersion),
        ("coherence.energies", lambda m: m.coherence.energies if m.coherence.storages[which] > 1 else None),
    ]
    frame: list[tuple[str, Callable[[ScanModel], Any]]] = [
        ("the frame of the probe", lambda m: m.geometry.view),
        ("the propagation", lambda m: m.p.propagation),
    ]
    return always + (frame if part == "probe" else [])


def _pixel(model: ScanModel) -> Any:
    """To nine digits: equal settings may differ by rounding."""
    pixel = model.geometry.pixel_size_m
    return (
        None if pixel is None else tuple(float(np.format_float_positional(p, 9, unique=False, fractional=False)) for p in pixel)
    )


def adopted(model: ScanModel, models: Mapping[str, ScanModel]) -> Any:
    """The parameters of a scan with the beginnings of those whose probe and object it uses, so that it does not matter which of
    them sees a frame first."""
    update = {}
    if model.p.share.probe is not None:
        update["illumination"] = models[model.p.share.probe].p.illumination
    if model.p.share.object is not None:
        update["sample"] = models[model.p.share.object].p.sample
    return model.p.model_copy(update=update)
