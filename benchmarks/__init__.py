"""How fast Sybil is, and whether that changed: asv's tracks, the gate, the counters, micro-benchmarks, engine bars.

asv imports every module here at every commit it measures, so none imports Sybil or torch before it is asked to run.
The folders are tools of their own, `python -m benchmarks.gate` and the like: asv sees none that has no __init__.py.
"""
