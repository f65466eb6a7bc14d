"""What is looked at: the pictures of `ptystream.model.pictures`."""

from ptystream.model.pictures import flower, moon

__all__ = ["flower", "moon"]
