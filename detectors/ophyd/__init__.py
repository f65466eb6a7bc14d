"""A reconstruction, and the frames that it is made of, as devices of a Bluesky plan: for ophyd and for ophyd-async.

The devices follow what a session publishes. They own no detector socket, and no pixel goes through the RunEngine.
"""
