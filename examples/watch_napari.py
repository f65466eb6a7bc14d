"""A running session in napari: amplitude and phase of the object as layers in micrometres, and where the frames are.

`pip install "napari[all]"`, then `python examples/watch_napari.py tcp://127.0.0.1:5580` with the session's publish address.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from ptystream.publish.snapshot import Snapshot
from ptystream.quality import remove_ramp
from ptystream.viewers.client import Client


def layers_of(snapshot: Snapshot) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name of each layer → its data, and how they lie, as napari's layers take it; empty before the first frames."""
    image = next(iter(snapshot.object.values()), None)
    if image is None:
        return {}, {}
    scale = np.multiply(image.pixel_size_m or (1e-6, 1e-6), 1e6)
    flat = remove_ramp(image.data[0], image.ramp)
    return {"amplitude": np.abs(flat), "phase": np.angle(flat)}, {
        "scale": scale,
        "translate": scale * image.offset,
        "units": ("um", "um"),
    }


def follow(viewer: Any, client: Client) -> Any:
    """Add layers to a viewer and keep them up to date; returns napari's worker."""
    from napari.qt.threading import thread_worker

    def draw(snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        held, place = layers_of(snapshot)
        for name, data in held.items():
            if name not in viewer.layers:
                colours = "gray" if name == "amplitude" else "twilight"
                viewer.add_image(data, name=name, colormap=colours, visible=name == "phase", **place)
                continue
            layer = viewer.layers[name]
            layer.data, layer.scale, layer.translate = data, place["scale"], place["translate"]
        if held:
            points = snapshot.positions * np.asarray(place["scale"])
            if "positions" not in viewer.layers:
                viewer.add_points(points, name="positions", size=float(place["scale"][0]) * 3, face_color="red", visible=False)
            viewer.layers["positions"].data = points
            viewer.title = f"{snapshot.run}: {snapshot.state}, iteration {snapshot.iteration}"

    @thread_worker(connect={"yielded": draw})
    def snapshots() -> Iterator[Snapshot | None]:
        """In a thread; what it yields, napari hands to `draw` in its own, and ends it between two."""
        while True:
            yield client.latest(0.2)

    return snapshots()


def main(endpoint: str) -> None:
    """Open the viewer and follow until it is closed."""
    import napari

    viewer = napari.Viewer()
    viewer.scale_bar.visible = True
    with Client(endpoint) as client:
        follow(viewer, client)
        napari.run()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5580")
