"""Other engines beside ours, on the same weights and the same machine (`bench/peers.py`).

`protocol`, `fidelity` and the modules of the peers run in the peers' own environments and import
nothing of kdexport; the rest runs in kdexport's.
"""
