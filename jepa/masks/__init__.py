"""Masks of the masked models: 2-D blocks (I-JEPA), tubes and 3-D multi-block masks (V-JEPA), for whole batches at once.

A generator draws, for every sample, the tokens of the context and of M targets. :class:`Masks` seeds it by
(seed, sample id), so that ranks differ and runs repeat, and collates the rows, whose lengths differ:

* ``random_subset`` cuts each row to a length that belongs to the generator and the grid, by a random choice: every
  frame keeps its share of tokens, shapes never change, and no sample feels its batch.
* ``packed`` cuts nothing: rows of different lengths, end to end, and each a function of (seed, sample id) alone.
* ``legacy`` is the published way: all rows are cut to the shortest of the batch and keep their first tokens in raster
  order, so that the context lies in the early frames (the top rows of an image) and shrinks there as the batch grows;
  one block size for the whole batch; 2-D blocks never reach the last row and column; and where these leave too little,
  the context shows what some of them ask.
"""

from jepa.masks.collation import COLLATIONS, Masks
from jepa.masks.generators import Blocks, Chance, Grid, MaskGenerator, MultiBlock, Range, Tubes
from jepa.masks.random import fold, uniform

__all__ = [
    "COLLATIONS",
    "Blocks",
    "Chance",
    "Grid",
    "MaskGenerator",
    "Masks",
    "MultiBlock",
    "Range",
    "Tubes",
    "fold",
    "uniform",
]
