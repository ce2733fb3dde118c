"""How far apart two ways of computing the same value may be in tests: one table, each line with its reason.

``_REL`` is relative, ``_ABS`` absolute, in the units of the values. Comparisons that must be exact, or that float64 makes exact to its last digits,
stay with their tests.
"""

FLOAT32_REL = 1e-6
"""A few float32 operations, each within 6e-8."""

FLOAT32_ABS = 1e-6
"""The same for values up to 1."""

DIFFERENCE_REL = 1e-3
"""Figures that are differences of nearly equal float32 maps, so that little of their digits is left."""

TINY_MODEL_ABS = 1e-4
"""Maps and scores of the tests' tiny model: float32 sums of 25 values up to 255, against float64 loops or summed in another order."""

TINY_MODEL_REL = 1e-5
"""The same, relative to a score or a threshold, also after a product with a normalization map or a difference from a guard band."""

GRAY_LEVEL_ABS = 2.0
"""The kernels may round a pixel at a tie to the next gray level: |pixel - mean| of the tiny model moves by at most one level for each of the two."""

UPSAMPLED_REL = 1e-5
"""Maps at frame resolution: what the kernels are held to at every opening (snl_runtime/gpu/checks.py), and float32 against the formula."""

NORMALIZATION_REL = 1e-5
"""Normalization maps: float32 means over parts and neighbors, of scaled maps or in another order."""

EXPORTED_FP32_ABS = 1e-5
"""Exported graphs against the training side: float32 sums of a few hundred terms in another order, maps up to 3."""

EXPORTED_FP32_REL = 1e-5
"""The same, relative."""

EXPORTED_FP16_ABS = 1e-2
"""Exported graphs in half precision: 11 bits, through about twenty layers."""
