"""One script a claim: each measures Pinhole and what it is compared with, side by side, in one run.

A benchmark is a module here with ``run(workspace, progress)``, which returns flat figures, all measured in
that call, and ``NEEDS_WORKSPACE = True`` if it measures
on a workspace (else ``workspace`` may be None).
``pinhole bench NAME`` runs it.
"""
