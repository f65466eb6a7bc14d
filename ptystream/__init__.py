"""Live ptychography: frames and positions in, a growing picture out."""

__version__ = "0.1.0"
