"""How good a run is while it runs: what is measured of it beside its own reconstruction, without changing a bit of that."""
