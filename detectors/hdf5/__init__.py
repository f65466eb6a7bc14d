"""Frames and positions from HDF5 files, finished or still being written."""

from .source import Hdf5Scan

__all__ = ["Hdf5Scan"]
