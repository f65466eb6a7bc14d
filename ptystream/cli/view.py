"""`ptystream view`: the web viewer, in a process of its own, or one that draws in the terminal."""

from __future__ import annotations

from rich.console import Console

from ptystream.params.load import plugins


def view(endpoint: str, host: str, port: int, keys: str | None, peer_keys: str | None, terminal: bool = False) -> int:
    """Body of the command; prints the viewer's address and serves until it is stopped, or draws until the run is over."""
    viewer = plugins("viewers").get("terminal" if terminal else "web")
    if viewer is None:
        raise RuntimeError(f"no {'terminal' if terminal else 'web'} viewer is installed")
    certificates = {"keys": keys, "peer_keys": peer_keys}
    if terminal:
        try:
            viewer(endpoint, Console(), **certificates)
        except KeyboardInterrupt:
            return 130
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        return 0
    viewer.serve(endpoint, host=host, port=port, on_address=lambda address: print(address, flush=True), **certificates)
    return 0
