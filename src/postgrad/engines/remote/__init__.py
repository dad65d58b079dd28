"""Generators beside the trainer: processes that go on generating while it works.

Start at `fleet.py` (an engine made of generators), then `worker.py` (what one of them does), `process.py` (one on this machine),
`ray.py` (one in a cluster).
"""
