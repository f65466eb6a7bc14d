"""The branches of the tree that belong to no algorithm and no detector: the session, its files and its sockets."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from ptystream.params.archive import DocumentsParameters, TiledParameters
from ptystream.params.autoplot import AutoplotParameters
from ptystream.params.base import Branch, parameter
from ptystream.params.interaction import InteractionParameters
from ptystream.params.patterns import checked, checked_beforehand, kept_below
from ptystream.params.quality import QualityParameters
from ptystream.verbosity import level


class PublishParameters(Branch):
    """Snapshots for viewers."""

    active: bool = parameter(True, ours=True)
    """Whether results are published while running."""

    address: str = parameter("tcp://127.0.0.1:*", ours=True)
    """Where viewers connect; '*' takes a free port and the log says which. Loopback needs no keys; any other interface
    needs `keys`, or `insecure`."""

    keys: str | None = parameter(None, ours=True)
    """The session's own CURVE certificate, a file that ends in .key_secret: what is published is then encrypted."""

    peer_keys: str | None = parameter(None, ours=True)
    """Folder of public certificates of the viewers that are let in; None: every viewer that knows the session's own."""

    insecure: bool = parameter(False, ours=True)
    """Publish beyond loopback without encryption: everybody on that network can look."""

    interval_s: float = parameter(0.1, lower=0.0, upper=3600.0, steerable=True, ours=True)
    """Shortest time between two snapshots, seconds."""

    share: float = parameter(0.02, lower=0.001, upper=1.0, steerable=True, ours=True)
    """Largest share of the engine's time that snapshots may take: after one that took 40 ms, none is made for 2 s. The last
    one of a run is made all the same."""


class MetricsParameters(Branch):
    """Numbers for Prometheus."""

    active: bool = parameter(True, ours=True)
    """Whether the metrics can be scraped."""

    address: str = parameter("127.0.0.1", ours=True)
    """Interface of the endpoint."""

    port: int = parameter(0, lower=0, upper=65535, ours=True)
    """Port of the endpoint; 0 takes a free one and the log says which."""

    stuck_after_s: float = parameter(120.0, lower=1.0, ours=True)
    """The engine is told as dead, by /healthz and to systemd, when it has not come round for so long, seconds: longer than any
    pass and the saving of a result take."""


class RecordingParameters(Branch):
    """The append-only record of everything that arrived."""

    active: bool = parameter(True, ours=True)
    """Whether messages are recorded, and acknowledged only then. A session that was killed continues from the record."""

    file: str = parameter("recordings/%(run)s.ptyrec", ours=True)
    """Path pattern below `io.home`; its only key is %(run)s."""

    files: bool = parameter(False, ours=True)
    """Record too what messages only refer to: frames and readings that lie in files (BlueskyScan), as they were read there,
    compressed chunks as they are. What continues from the recording, or is repeated from it, then needs the files no more."""

    fsync: bool = parameter(False, ours=True)
    """Wait for the disk as well: the record then survives the machine, not only the process."""

    when_full: Literal["continue", "stop"] = parameter("continue", ours=True)
    """What to do where the disk is full. 'continue': the reconstruction goes on, what comes is not recorded until there is room
    again, and log, progress line, metrics and the record itself say so. 'stop': the session ends with what it has."""

    @field_validator("file")
    @classmethod
    def _pattern(cls, value: str) -> str:
        return checked_beforehand(value)


class SteeringParameters(Branch):
    """Requests to the session, of `ptystream ctl` and other programs."""

    active: bool = parameter(True, ours=True)
    """Whether the session can be asked and steered while it runs."""

    address: str = parameter("tcp://127.0.0.1:*", ours=True)
    """Where to ask; '*' takes a free port and the log says which. On loopback everybody on this machine may steer; any other
    interface needs `keys`, or `insecure`."""

    keys: str | None = parameter(None, ours=True)
    """The session's own CURVE certificate, a file that ends in .key_secret: requests and replies are then encrypted."""

    peer_keys: str | None = parameter(None, ours=True)
    """Folder of public certificates of those who are let in; None: whoever knows the session's own."""

    operators: str | None = parameter(None, ours=True)
    """Folder of public certificates of those who may change something; the others may only look. None: all who are let in."""

    insecure: bool = parameter(False, ours=True)
    """Listen beyond loopback without encryption: everybody on that network can steer."""


class FramesParameters(Branch):
    """Frames as files, for others who want them: HDF5 that can be read while it grows (SWMR), one file for each acquisition."""

    active: bool = parameter(False, ours=True)
    """Whether frames that come over a socket are written to files too, whole and compressed as they came."""

    file: str = parameter("frames/%(run)s/%(scan)s_%(epoch)s.h5", ours=True)
    """Path pattern below `io.home`. Keys are %(run)s, %(scan)s (its label) and %(epoch)s, the source's name of the acquisition. A
    file that another session wrote is never replaced: a number is added to the name."""

    @field_validator("file")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            made = value % {"run": "run", "scan": "scan", "epoch": "epoch"}
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"cannot be filled in ({error}); known are %(run)s, %(scan)s, %(epoch)s") from error
        if "%(epoch)" not in value or not made.endswith((".h5", ".hdf5", ".nxs")):
            raise ValueError("needs %(epoch)s, so that each acquisition has its own file, and must end in .h5, .hdf5 or .nxs")
        kept_below(made)
        return value


class AutosaveParameters(Branch):
    """Auto-save options

    Dumps of the running reconstruction. A session that was killed and is started again continues from its newest dump,
    where it also finds its recording. Dumps are written beside the reconstruction, never two at a time, and
    take a tenth of the time at most: where iterations are quick, fewer come than `interval` asks for."""

    active: bool = parameter(True)
    """Activation switch

    If ``True`` the current reconstruction will be saved at regular intervals."""

    interval: int = parameter(10, lower=-1)
    """Auto-save interval

    If ``>0`` the current reconstruction will be saved whenever an engine has done so many further iterations, between two
    passes of `numiter_contiguous`. 0 or less: never."""

    rfile: str = parameter("dumps/%(run)s/%(run)s_%(engine)s_%(iterations)04d.ptyr")
    """Auto-save file name (or format string)

    Below `home`; keys as for `io.rfile`."""

    keep: int | None = parameter(2, lower=1, ours=True)
    """Dumps of a run that are kept, the newest; None: all, as ptypy does."""

    @field_validator("rfile")
    @classmethod
    def _pattern(cls, value: str) -> str | None:
        return checked(value)


class IoParameters(Branch):
    """Global parameters for I/O"""

    home: str = parameter("./")
    """Base directory for all I/O

    home is the root directory for all input/output operations. All other path parameters that are relative paths are
    relative to this directory, those of arrays that are read as well as those of files that are written."""

    rfile: str | None = parameter("recons/%(run)s/%(run)s_%(engine)s_%(iterations)04d.ptyr")
    """Reconstruction file name (or format string)

    Below `home` (an absolute path stays; a relative one that leads out of `home` is refused), written after each engine; None: no
    file. Keys are those of the last iteration: %(run)s, %(engine)s,
    %(iteration)d (of this engine), %(iterations)d (of all), %(numiter)d, %(duration)f, %(error)s; and %(series)s and
    %(angle)f of the scan (`scans.*.data.series`)."""

    rformat: Literal["minimal", "dls", "used_params"] = parameter("minimal")
    """Reconstruction file format

    Choose a reconstruction file format for after engine completion.

    - ``'minimal'``: Bare minimum of information
    - ``'dls'``:    Custom format for Diamond Light Source: with the coordinates of every pixel
    - ``'used_params'``: Same as minimal but including all used parameters"""

    cxi: bool = parameter(False, ours=True)
    """Write each result as CXI/NeXus too, beside `rfile` with the ending .cxi: with ledger, configuration and provenance, for
    silx, h5web, ptychodus and catalogues. A thread does it; what goes wrong is told and counted, and costs the run nothing."""

    autosave: AutosaveParameters = AutosaveParameters()
    """Auto-save options"""

    autoplot: AutoplotParameters = AutoplotParameters()
    """Plotting client parameters"""

    interaction: InteractionParameters = InteractionParameters()
    """ZeroMQ interactor options"""

    benchmark: Literal["all", "data_load", "engine_init", "engine_prepare", "engine_iterate", "engine_finalize"] | None = (
        parameter(None)
    )
    """Produce timings for benchmarking the performance of data loaders and engines

    Seconds of the engine's thread, written to 'benchmark.json' in `home` after each engine: 'all', or one of data_load
    (taking frames and placing them), engine_init, engine_prepare (starting an engine and giving it frames), engine_iterate and
    engine_finalize. None: no file."""

    publish: PublishParameters = PublishParameters()
    """Snapshots for viewers."""

    metrics: MetricsParameters = MetricsParameters()
    """Numbers for Prometheus."""

    recording: RecordingParameters = RecordingParameters()
    """The append-only record of everything that arrived."""

    steering: SteeringParameters = SteeringParameters()
    """Requests to the session, of `ptystream ctl` and other programs."""

    frames: FramesParameters = FramesParameters()
    """Frames as files, for others who want them."""

    tiled: TiledParameters = TiledParameters()
    """A Tiled server that gets each finished result."""

    documents: DocumentsParameters = DocumentsParameters()
    """Bluesky documents of each run."""

    @field_validator("rfile")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return checked(value)

    @model_validator(mode="after")
    def _made_of_a_file(self) -> IoParameters:
        """What is made of the result's file needs one."""
        if self.cxi and (self.rfile is None or self.rfile.endswith(".cxi")):
            raise ValueError("cxi: needs an io.rfile that ends in .ptyr, of which it is made")
        if self.tiled.uri is not None and self.rfile is None:
            raise ValueError("tiled.uri: needs io.rfile, the file that results are read from")
        return self


class LiveParameters(Branch):
    """How a session follows a scan."""

    latency: float | None = parameter(None, lower=0.0, upper=3600.0, steerable=True, ours=True)
    """Longest wanted duration of a pass while frames arrive, seconds: it then visits the new frames and a rotating share
    of the rest. None: whole sweeps."""

    restart_probe: bool = parameter(False, ours=True)
    """Take the starting probe again when the last frame has arrived, and the exit waves as probe × object

    A probe goes on changing slowly for hundreds of iterations, so a result depends on how many there were while frames
    arrived. With this it depends on the frames alone, as that of an offline run of `numiter` iterations does; the object
    stays, so the picture does too. The probe's progress during the acquisition is given up for it: `numiter` must be what
    an offline run would need. Off: the iterations just go on, as ptypy's do."""

    timeout_s: float | None = parameter(None, lower=0.0, ours=True)
    """A scan from which nothing came for so long is ended and finished, seconds; None: never."""

    beam_timeout_s: float | None = parameter(3600.0, lower=0.0, ours=True)
    """How much longer than `timeout_s` a scan may be silent that has lost the beam, as the newest reading of its dose or shutter
    says, seconds; None: until it is stopped."""

    runs: int | None = parameter(1, lower=1, ours=True)
    """Number of scans until the session ends; None: until it is stopped."""

    overlap: int = parameter(2, lower=1, ours=True)
    """Scans that are reconstructed at a time: while one is refined, the next one's frames are iterated on as they arrive,
    the newest first. 1: one after another, while the frames of up to four more are kept.
    Always so over several ranks, and where a scan is saved as a .ptyd file (`data.save`)."""

    aborted: Literal["finish", "save", "discard"] = parameter("finish", ours=True)
    """What becomes of a scan that its source aborted

    - ``'finish'``: all `numiter` iterations on the frames that came, and a result, as of any other scan
    - ``'save'``: a result at once, after one more pass with the frames that came last
    - ``'discard'``: no result, and it is not counted in `runs`

    The result says why the scan ended."""

    epochs: str = parameter("same", ours=True)
    """How acquisitions of several sources are joined to one scan: 'same' name, 'metadata:<key>', or 'order'."""

    quick_look: Literal["none", "icom", "dpc", "tcbf", "wdd"] = parameter("none", ours=True)
    """Picture of a scan that needs no iteration: there before the first one, and beside the reconstruction while frames come

    - ``'none'``: none
    - ``'icom'``: integrated centre of mass, a phase; for scans of any positions, focused
    - ``'dpc'``: differential phase contrast: by how much the beam is deflected, and the direction as a phase
    - ``'tcbf'``: tilt-corrected bright field, an amplitude, and the aberrations by which it is corrected
    - ``'wdd'``: Wigner distribution deconvolution with the probe that these aberrations make

    The last two need a raster (`scans.*.data.raster`) and lengths, and all of them the far field. The angle of the scan and the
    descan are found too, told by log and quality figures, and taken into account. Frames are looked at for a twentieth of the
    engine's time; what is decided from the first frames (a centre that is found, the median of the dose) is decided from
    32 at the most. None of it changes the reconstruction otherwise."""

    quality: QualityParameters = QualityParameters()
    """What is measured of a run's quality while it runs."""


class RootParameters(Branch):
    """The root of the tree, without scans and engines."""

    verbose_level: str | int = parameter("ERROR")
    """Verbosity level

    What the log says: a number, 0 to 5, or the name of a level. Each includes those above it.

    - ``CRITICAL`` (0): only critical errors
    - ``CITATION``: the same, and the papers to cite
    - ``ERROR`` (1): all errors
    - ``INTERACTIVE``: the same, and the one-line progress
    - ``WARNING`` (2): warnings
    - ``INFO`` (3): process information, one line for each pass
    - ``INSPECT`` (4): object information: sizes and places of probes, objects and frames
    - ``DEBUG`` (5): everything

    `ptystream live` has the progress line and the warnings too where this is not given. The papers to cite are printed
    at the end at every level."""

    log_format: Literal["text", "json"] = parameter("text", ours=True)
    """How the log, and what else a session says, is written to standard error

    'json': an object in one line for each record, with time, level, logger, thread, message and exception, for programs that
    collect logs; there is no progress line then. Handlers that a script has set up itself stay as they are."""

    data_type: Literal["single", "double"] = parameter("single")
    """Reconstruction floating number precision"""

    run: str | None = parameter(None)
    """Reconstruction identifier

    Name of the run, without a '/'. None: the name of the configuration file or of the script, up to its first dot."""

    frames_per_block: int = parameter(100000, lower=1)
    """Max number of frames per block of data: as many are taken from the scan at once."""

    min_frames_for_recon: int = parameter(0, lower=None)
    """Minimum number of frames to be loaded before starting reconstruction; 0: automatic (16)."""

    dry_run: bool = parameter(False)
    """Dry run switch

    Run everything but the memory- and cpu-heavy steps, and save nothing: the configuration is checked, the engines are tried
    on a few frames of its shape, and what the run needs in memory and time is said. No socket is opened."""

    ipython_kernel: bool = parameter(False)
    """Start an ipython kernel for debugging

    The session's objects are then looked at with ``jupyter console --existing``; needs ``pip install 'ptystream[ipython]'``.
    Whoever can read the connection file, which only its owner can, may execute anything in the session."""

    io: IoParameters = IoParameters()
    """Global parameters for I/O"""

    live: LiveParameters = LiveParameters()
    """How a session follows a scan."""

    device: Literal["auto", "cpu", "gpu"] = parameter("auto", ours=True)
    """Where engines run; 'auto': on a GPU if one is there, otherwise on the CPU. `--device` overrules."""

    threads: int | None = parameter(None, lower=1, ours=True)
    """CPU threads of an engine; None: all cores that the process may use."""

    seed: int = parameter(0, lower=0, ours=True)
    """Key of every random choice."""

    @field_validator("verbose_level")
    @classmethod
    def _known(cls, value: int | str) -> int | str:
        level(value)
        return value

    @field_validator("run")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "/" in value or "\0" in value or value in (".", "..")):
            raise ValueError("must be a name that can be part of a file name, without '/'")
        return value
