"""Multislice ptychography: a thick object slice by slice, and everything else that forms a pattern, refined together."""
