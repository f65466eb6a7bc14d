"""What a user may set about saving the prepared frames of a scan; common to all sources."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from ptystream.params.base import Branch, parameter


class SavingParameters(Branch):
    """Saving of prepared frames as a `.ptyd` file."""

    dfile: str | None = parameter(None)
    """File path where prepared data will be saved in the ``ptyd`` format.

    Below `io.home`. A file that is there already is renamed to ``<dfile>.old`` with the parts that it links to
    (``.old2``, … where that is there too)."""

    chunk_format: str = parameter(".chunk%02d")
    """Appendix to saved files if save == 'link'

    The n-th chunk is saved as ``<dfile><chunk_format % n>``. (ptypy always takes '.part%03d'.)"""

    save: Literal["append", "link", "merge"] | None = parameter(None)
    """Saving mode

    Mode to use to save data to file, while the scan goes on; frames that become usable within a second are one chunk, of
    `frames_per_block` frames at most.

    - ``None``: No saving
    - ``'merge'``: merges data in single chunk when the scan has ended; until then as 'link'
    - ``'append'``: appends each chunk in master \\*.ptyd file
    - ``'link'``: appends external links in master \\*.ptyd file and stores chunks separately in the path given by the
      link. Links file paths are relative to master file. To be preferred where another program reads while it is written:
      every file is whole at any time."""

    experimentID: str | None = parameter(None)  # noqa: N815
    """Name of the experiment; kept in the saved file."""

    version: float = parameter(0.1)
    """Version of the ``ptyd`` format; kept in the saved file."""

    @field_validator("chunk_format")
    @classmethod
    def _numbers(cls, value: str) -> str:
        try:
            names = {value % k for k in (0, 1, 10)}
        except (TypeError, ValueError, KeyError):
            names = set()
        if len(names) < 3 or "/" in value or "\0" in value:
            raise ValueError("must take one whole number and be part of a file name, as '.chunk%02d'")
        return value

    @model_validator(mode="after")
    def _has_file(self) -> Self:
        if self.save is not None and not self.dfile:
            raise ValueError(f"save: {self.save!r}: needs the name of a file, `dfile`")
        return self
