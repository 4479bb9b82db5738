"""Torture of real processes: hosts in network namespaces, faults, writers on every server, and a judge.

`stage` sets up hosts and heals them, `faults` breaks them, `plan` draws rounds from a seed and keeps to what
is promised, `checker` judges what the writers saw, `rounds` joins the four, `campaign` repeats it for
minutes and `report` tells.
"""
