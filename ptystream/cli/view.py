"""`ptystream view`: the web viewer, in a process of its own, or one that draws in the terminal."""

from __future__ import annotations

from rich.console import Console

from ptystream.params.load import plugins


def view(
    endpoint: str,
    host: str,
    port: int,
    keys: str | None,
    peer_keys: str | None,
    steer: str | None = None,
    tokens: str | None = None,
    terminal: bool = False,
) -> int:
    """Body of the command; draws until the run is over, or prints the viewer's address and serves until it is stopped. With the
    steering address of a session a second line is the address for operators."""
    viewer = plugins("viewers").get("terminal" if terminal else "web")
    if viewer is None:
        raise RuntimeError(f"no {'terminal' if terminal else 'web'} viewer is installed")
    certificates = {"keys": keys, "peer_keys": peer_keys}
    if terminal and steer is not None:
        raise RuntimeError("--steer: the viewer in the terminal only looks; steer with `ptystream ctl`")
    if terminal:
        try:
            viewer(endpoint, Console(), **certificates)
        except KeyboardInterrupt:
            return 130
        except ValueError as error:
            raise RuntimeError(str(error)) from None
        return 0

    def operators(address: str) -> None:
        print(f"to operate: {address}", flush=True)

    def looking(address: str) -> None:
        print(address, flush=True)

    given = {"host": host, "port": port, "steer": steer, "tokens": tokens} | certificates
    try:
        viewer.serve(endpoint, **given, on_address=looking, on_operators=operators)
    except (ValueError, OSError) as error:
        raise RuntimeError(str(error)) from None
    return 0
