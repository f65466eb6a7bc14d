"""A probe for each frame, and the subspace that an engine keeps them in."""
