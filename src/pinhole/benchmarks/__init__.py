"""One script a claim: each measures Pinhole and what it is compared with, side by side, in one run.

A benchmark is a module here with ``run(workspace, progress) -> dict`` of flat figures, all measured in
that call. ``NEEDS_WORKSPACE = True`` says that it measures on a built workspace; else it gets None.
"""
