"""What a teacher said in answer to a lesson, and what else it might have said at each token.

Knows nothing of who the teacher is, or of how a student is held to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Said:
    """The ``n`` tokens of one answer, with the end of turn if it got there; at each place the ``k`` likeliest tokens."""

    tokens: np.ndarray  # (n,) int32
    ids: np.ndarray  # (n, k) int32
    logs: np.ndarray  # (n, k + 1) float32: log-probabilities of these, and last that of all other tokens together
