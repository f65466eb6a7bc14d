"""`ipython_kernel`: a Jupyter kernel in a thread of a running session, to look at its objects."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

from ptystream.params.errors import ConfigurationError, Fault

log = logging.getLogger(__name__)

START_S = 120.0


def start_kernel(names: Mapping[str, Any]) -> str:
    """Start the kernel, once in a process, with these names; returns the path of its connection file.

    It listens on loopback; the connection file, which only its owner can read, holds the key. Raises `ConfigurationError`
    where ipykernel is missing or a kernel runs already (a notebook has one).
    """
    try:
        from ipykernel.kernelapp import IPKernelApp
    except ImportError as error:
        remedy = f"ipykernel is not installed ({error}): pip install 'ptystream[ipython]', or leave it out"
        raise ConfigurationError([Fault("ipython_kernel", True, remedy)]) from error
    if IPKernelApp.initialized():
        raise ConfigurationError([Fault("ipython_kernel", True, "this process has a kernel already: leave it out")])
    started, failure = threading.Event(), []

    class Kernel(IPKernelApp):  # type: ignore[misc]
        """Without what only a main thread may do. What the session prints still goes where it went before, too."""

        def init_signal(self) -> None:
            """Signals are the session's."""

        def init_sys_modules(self) -> None:
            """`__main__` stays the script's."""

        def init_pdb(self) -> None:
            """So does its debugger."""

        def patch_io(self) -> None:
            """And its fault handler."""

    def work() -> None:
        try:
            asyncio.set_event_loop(asyncio.new_event_loop())
            application = Kernel.instance(user_ns=dict(names), log_level=logging.CRITICAL, quiet=False, capture_fd_output=False)
            application.initialize(["--HistoryManager.enabled=False"])
            files.append(application.abs_connection_file)
            asyncio.get_event_loop().call_later(0.05, started.set)
            application.start()
        except BaseException as error:
            failure.append(error)
            started.set()

    files: list[str] = []
    threading.Thread(target=work, name="ipython kernel", daemon=True).start()
    if not started.wait(START_S) or failure:
        why = str(failure[0]) if failure else f"it did not start within {START_S:g} s"
        raise ConfigurationError([Fault("ipython_kernel", True, f"the kernel could not be started: {why}")])
    log.warning("ipython kernel: jupyter console --existing %s", files[0])
    return files[0]
