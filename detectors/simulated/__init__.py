"""Simulated sources, to see the whole pipe run without a beamline."""
