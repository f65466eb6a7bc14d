"""Requests to a running session: looked up, or changed by those who may, between two passes of its engines."""
