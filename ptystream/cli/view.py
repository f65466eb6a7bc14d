"""`ptystream view`: the web viewer, in a process of its own."""

from __future__ import annotations

from ptystream.params.load import plugins


def view(endpoint: str, host: str, port: int, keys: str | None, peer_keys: str | None) -> int:
    """Body of the command; prints the viewer's address and serves until it is stopped."""
    viewer = plugins("viewers").get("web")
    if viewer is None:
        raise RuntimeError("no web viewer is installed")
    certificates = {"keys": keys, "peer_keys": peer_keys}
    viewer.serve(endpoint, host=host, port=port, on_address=lambda address: print(address, flush=True), **certificates)
    return 0
