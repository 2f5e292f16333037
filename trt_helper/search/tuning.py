"""The constants that tune the search, in one place. `benchmarks/tuning.py` measures what each is worth.

They decide how many trials and forward passes a search takes, and never whether a plan passes: that is measured.

In brackets: trials of nine searches (six of the zoo, magika, mnist, yunet) with the constant halved and doubled; as it
is they take 135 for 60 pins. One search of the nine, yunet's, moves by some 30 trials for any reason at all, so that
less than that says little. Constants without brackets were not measured since the effects are found by gradients.
"""

from __future__ import annotations

# ------------------------------------------------------------------------------- strategy: which plan is tried next

HOPEFUL = 2.0
"""A plan is worth a trial while its predicted error is below this many times the tolerance. [132, 142]"""

NEAR_MISS = 2.0
"""A trial that failed with an error ratio up to this is followed by one with a few more pins. [136, 120]"""

FAR_FEWER = 0.75
"""Before pins are taken out one by one, a plan with at most this share of them is tried. [135, 135]"""

FIRST_CORRECTION = 1.6
"""Measured over predicted error of a plan, before any was measured. [135, 134]"""

UNINFORMATIVE = 50.0
"""An error ratio above this says nothing about how good the predictions near the tolerance are. [135, 135]"""

PREDICTED_DEVIATION, MEASURED_DEVIATION = 0.3, 0.04
"""Standard deviation of the logarithm of an error: predicted, or measured in a plan with other pins."""

# --------------------------------------------------------------------------- error model: how rounding effects add up

ERROR_CAP = 1e4
"""Error ratios above this are all the same: hopeless."""

SAME_EFFECT = 0.02
"""Two rounding effects that differ by less than this share are effects of one rounding. [135, 135]"""

NEGLIGIBLE = 0.02
"""Layers whose effects together stay below this error ratio are given up at once. [135, 135]"""

EQUAL_LOSS = 1e-3
"""Of layers that are missed equally little, within this share, the most expensive pin is given up first."""

MOST_BLAME_COMBINATIONS = 4096
"""Ways to blame one party of each conflict that are compared."""

# ------------------------------------------------------------------- rounding effects: forward passes of the emulator

WATCHED = 8
"""Figures of the outputs whose error is followed on the first sample; a backward pass for each.
[137 and 63 pins, 116 and 60 pins]
"""

WATCHED_LATER = 4
"""The same on each further sample, which is looked at when a plan fails on it. [137 and 58 pins, 110 and 60 pins]"""

ELEMENTS_OF_A_FIGURE = 32
"""Elements of the outputs that a figure stands for, if it does not stand for one. [121 and 62 pins, 104 and 61 pins]"""

PEAK = 4.0
"""The largest error of an output is taken to be at most this many times the root of the mean square of large ones.
[132 and 61 pins, 132 and 64 pins]
"""

GRADIENT_ELEMENTS = 1 << 26
"""Elements of the gradient of one tensor: fewer figures are watched where the largest tensor would need more."""

MOST_PASSES, MOST_PASSES_LATER = 40, 12
"""Forward passes for the rounding effects on the first sample, and on a further one; in units of the whole model."""

MOST_PASSES_OF_A_SEARCH = 60
"""Forward passes for all that is looked up on one sample; twice as many on several."""

MOST_PASSES_OF_A_CONFLICT = 30
"""Forward passes of one search for roundings that harm together."""

FEW_UNSURE = 8
"""So many roundings that first order is not trusted with are measured one by one at once. [135, 135]"""

FIRST_ORDER = 0.1
"""A difference above this share of the tensor's largest value is followed by a measurement and not by first order.
[136, 135]
"""

EXPLAINED = 3.0
"""First order explains what a group does when that is at most this many times its prediction. [143, 135]"""

OPPOSED = -0.8
"""Cosine between two errors below which they may cancel."""

CANCELLED = 0.1
"""Two errors cancel when they leave at most this share of one of them."""

USUAL_PASSES, WORTH_A_NOTE = 30, 5.0
"""What the rounding effects of a sample take as a rule, in forward passes; and the seconds from which that is said."""

# ----------------------------------------------------------------------------- conflicts: roundings that harm together

SURPRISE = 5.0
"""A failed plan whose error is this many times the predicted one (and the tolerance) starts a search for conflicts.
[136, 135]
"""

MOST_CONFLICTS = 12
"""Conflicts that are added to the error model of one search."""

# ---------------------------------------------------------------------------------- metric in place of the tolerance

MOST_MISSED = 100.0
"""A metric that is missed by more than this many times its allowance says nothing about the size of errors."""

METRIC_SHARE = 1e-3
"""Errors below this share of an output's largest value are taken to move no metric."""

# ------------------------------------------------------------------------------------- warning that no small set exists

SMALL_SET, SMALL_SET_SHARE = 16, 0.25
"""More pins than this, in number and as a share of the layers, are not a small set."""
