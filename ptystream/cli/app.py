"""The commands: one module each, loaded when it is called."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Annotated, Any

import typer

from ptystream.cli.options import with_options
from ptystream.faults import declarations

app = typer.Typer(
    help="Live ptychography: frames and positions in, a growing picture out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Device = Annotated[str | None, typer.Option(help="Where engines run: auto, cpu or gpu; instead of the configuration's `device`.")]


def _body(module: str, name: str) -> object:
    return getattr(importlib.import_module(f"ptystream.cli.{module}"), name)


@app.command()
def demo(
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the results.")] = "results/demo",
    frames: Annotated[int, typer.Option(min=1, help="Frames of the scan.")] = 400,
    rate: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 100.0,
    side: Annotated[int, typer.Option(min=32, max=1024, help="Pixels of a frame's side.")] = 128,
    browser: Annotated[bool, typer.Option(help="Open the viewer in a browser.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Another flower, another moon.")] = 0,
    device: Device = None,
) -> None:
    """A simulated beamline, reconstructed live, in a browser: needs nothing."""
    _call("demo", "demo", output, frames, rate, side, browser, seed, device)


@app.command()
def live(
    config: Annotated[str, typer.Argument(help="YAML, JSON or TOML file.")],
    replay: Annotated[str | None, typer.Option(help="Take the messages from this recording instead of sockets.")] = None,
    device: Device = None,
    endless: Annotated[bool, typer.Option("--endless", help="Scan after scan until stopped, whatever `live.runs` says.")] = False,
) -> None:
    """Connect, reconstruct, publish, save. Ctrl-c saves what is there; SIGUSR1 pauses and resumes."""
    _call("live", "live", config, replay, device, endless)


@app.command()
def simulate(
    config: Annotated[str | None, typer.Argument(help="Speak to `ptystream live` of this configuration, as its sources.")] = None,
    frames_address: Annotated[
        str | None, typer.Option(help="Without CONFIG: where frames are offered; tcp://127.0.0.1:5570.")
    ] = None,
    positions_address: Annotated[
        str | None, typer.Option(help="Without CONFIG: where positions are offered; tcp://127.0.0.1:5571.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="As CONFIG says, otherwise 400.")] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 100.0,
    side: Annotated[int | None, typer.Option(min=32, max=1024, help="Without CONFIG: pixels of a frame's side; 128.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    wait: Annotated[bool, typer.Option(help="Begin when a line arrives on standard input.")] = False,
    scans: Annotated[int, typer.Option(min=1, help="With CONFIG: one after the other.")] = 1,
    first: Annotated[int, typer.Option(min=1, help="With CONFIG: number of the first scan, which is its name.")] = 1,
    stem: Annotated[
        bool, typer.Option("--stem", help="Without CONFIG: 4D-STEM of a sample of atoms; 1024 frames of 64.")
    ] = False,
    microscope: Annotated[
        str | None, typer.Option(help="Without CONFIG: 4D-STEM as this file of StemScan's parameters has it, frames alone.")
    ] = None,
) -> None:
    """The detector side alone, on the wire: on that of a configuration, or on two native ones."""
    options = (frames_address, positions_address, frames, rate, side, seed, wait, scans, first, stem, microscope)
    _call("simulate", "simulate", config, *options)


@app.command()
def view(
    endpoint: Annotated[str, typer.Argument(help="Publish address of a session.")] = "tcp://127.0.0.1:5580",
    host: Annotated[str, typer.Option(help="Interface of the web server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the web server; 0: a free one.")] = 0,
    keys: Annotated[str | None, typer.Option(help="Own CURVE certificate with the secret key.")] = None,
    peer_keys: Annotated[str | None, typer.Option(help="The session's public CURVE certificate.")] = None,
    steer: Annotated[str | None, typer.Option(help="Steering address of the session: operators may then steer.")] = None,
    tokens: Annotated[str | None, typer.Option(help="File that keeps the tokens, so that addresses stay the same.")] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Draw in this terminal instead.")] = False,
) -> None:
    """A web viewer for a running session, or one for a terminal."""
    _call("view", "view", endpoint, host, port, keys, peer_keys, steer, tokens, terminal)


@app.command()
def ctl(
    endpoint: Annotated[str, typer.Argument(help="Steering address of a session: it says it at its start.")],
    action: Annotated[str, typer.Argument(help="status, pause, resume, set, end, save, …; `actions` lists them.")] = "status",
    arguments: Annotated[list[str] | None, typer.Argument(help="In order, or name=value; values as in YAML.")] = None,
    keys: Annotated[str | None, typer.Option(help="Own CURVE certificate with the secret key.")] = None,
    peer_keys: Annotated[str | None, typer.Option(help="The session's public CURVE certificate.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait: the engine ends its pass first.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """Ask a running session, or steer it."""
    _call("ctl", "ctl", endpoint, action, arguments or [], keys, peer_keys, timeout, as_json)


@app.command()
def record(
    config: Annotated[str, typer.Argument(help="Configuration that names the sources.")],
    output: Annotated[str, typer.Option("-o", "--output", help="File to write.")] = "scan.ptyrec",
) -> None:
    """Keep what arrives, until every source has ended its scan."""
    _call("record", "record", config, output)


@app.command()
@with_options(declarations())
def replay(
    file: Annotated[str, typer.Argument(help="A recording.")],
    speed: Annotated[float, typer.Option(min=0.001, help="Times the original pace; inf: as fast as it is taken.")] = 1.0,
    into: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Straight into a session of this configuration, without sockets.")
    ] = None,
    to: Annotated[list[str] | None, typer.Option(help="Address for a channel: scan/data=tcp://127.0.0.1:5570.")] = None,
    link: Annotated[
        str | None,
        typer.Option(
            help="Socket of the sender: acknowledged, push or pub. Not given: as each channel came when it was recorded."
        ),
    ] = None,
    device: Device = None,
    **faults: Any,
) -> None:
    """Give a recording back, as it came or damaged on purpose: on the wire, or into a session."""
    _call("replay", "replay", file, speed, into, to or [], link, device, faults)


@app.command()
def params(
    path: Annotated[str, typer.Argument(help="A parameter or branch; nothing: all.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As a list of JSON objects.")] = False,
) -> None:
    """The reference of all parameters."""
    _call("params", "params", path, as_json)


@app.command()
def verify(
    result: Annotated[str, typer.Argument(help="A result (.ptyr) of a session.")],
    recording: Annotated[str, typer.Argument(help="What that session recorded.")],
    config: Annotated[str | None, typer.Option(help="Configuration, instead of the one in the result.")] = None,
    offline: Annotated[bool, typer.Option(help="Compare with offline runs of all frames as well.")] = True,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Draw where they differ, as PNG.")] = None,
) -> None:
    """Live equals offline? Repeats the schedule of a result on its recording, bit by bit. Exit status 1 where it differs."""
    _call("verify", "verify", result, recording, config, offline, picture)


@app.command()
def convert(
    given: Annotated[str, typer.Argument(metavar="IN", help="A recording, or a .ptyd, CXI or .ptyr file.")],
    made: Annotated[str, typer.Argument(metavar="OUT", help="Ends in .ptyd, or .cxi, .nxs or .h5 (CXI/NeXus).")],
    config: Annotated[str | None, typer.Option(help="Configuration of a recording, instead of the one in it.")] = None,
    scan: Annotated[str | None, typer.Option(help="Which entry of `scans`, where there are several.")] = None,
    acquisition: Annotated[str | None, typer.Option(help="Which acquisition of a recording; the first.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Frames of a recording, .ptyd or CXI file as .ptyd or NXcxi_ptycho; a result, .ptyr, as CXI/NeXus."""
    _call("convert", "convert", given, made, config, scan, acquisition, force)


@app.command()
def check(
    config: Annotated[str, typer.Argument(help="YAML, JSON or TOML file.")],
    listen: Annotated[float, typer.Option(min=0.0, help="Seconds to listen to streams that tell what they hold.")] = 0.0,
    convention: Annotated[
        str | None, typer.Option(metavar="RECORDING", help="Try every orientation of the detector on these frames instead.")
    ] = None,
    frames: Annotated[int, typer.Option(min=16, help="How many of the recording's frames `--convention` takes.")] = 200,
) -> None:
    """What is wrong with a configuration, and what to do."""
    _call("check", "check", config, listen, convention, frames)


@app.command()
def keys(
    names: Annotated[list[str], typer.Argument(help="One for each end: session, detector, viewer…")],
    folder: Annotated[str, typer.Option("-o", "--output", help="Folder for the certificates.")] = "keys",
) -> None:
    """CURVE certificates for sockets that leave the machine."""
    _call("keys", "keys", names, folder)


def _call(module: str, name: str, *arguments: object) -> None:
    from ptystream.params.errors import ConfigurationError

    function = _body(module, name)
    try:
        code = function(*arguments)  # type: ignore[operator]
    except ConfigurationError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        raise typer.Exit(2) from None
    except (OSError, RuntimeError, MemoryError) as error:
        print(f"ptystream {name}: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if code:
        raise typer.Exit(int(code))


def main() -> None:
    """Entry point of the command line."""
    from ptystream.verbosity import ToStderr

    logging.basicConfig(level=logging.WARNING, handlers=[ToStderr()])
    app()
