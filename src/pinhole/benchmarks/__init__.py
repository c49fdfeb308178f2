"""One script a claim: each measures Pinhole and what it is compared with, side by side, in one run.

A benchmark is a module here (a name that begins with _ is none) with ``run(workspace, progress)``, which returns flat
figures, all measured in that call, and ``NEEDS_WORKSPACE = True`` if it measures on a workspace (else ``workspace`` may be None).
It may have ``SIZES``, what its ``run`` takes as a third argument by name ("quick", "long"; the default is its own), or ``COUNTS = True`` where that
is a number of items (``--n``);
``table(figures, workspace)``, lines for people in place of a list of the figures; and ``plot(figures, path)``, which draws a PNG.
Figures measured on a workspace are kept in its ``benchmarks/NAME.json``, where the report finds what it shows.
``pinhole bench NAME [--quick|--long|--n N] [--plot FILE.png]`` runs it.
"""
