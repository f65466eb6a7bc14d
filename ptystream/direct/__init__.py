"""Pictures of a scan of diffraction patterns that need no iteration, and what they tell of the set-up.

Frames lie as in slabs: (frame, y, x), zero frequency at [0, 0]. Maps over a raster are (y, x, …), slow and fast.
"""
