"""ptypy's interaction wire: what its clients ask is answered from the last snapshot, and nothing of it is executed."""
