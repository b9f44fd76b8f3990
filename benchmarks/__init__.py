"""How fast Sybil is, and whether that changed: asv's tracks, the gate, the counters, micro-benchmarks, engine bars.

asv imports every module here at every commit it measures, so none imports Sybil or torch before it is asked to run.
"""
