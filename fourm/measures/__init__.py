"""How good results are: measures of pictures, maps, texts and tokens, each of one process or of many."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "maps": "fitted_depth",
    "measure": "MeanOf Measure Pair Row Settings State Value",
    "tables": "MEASURES MeasureRow Sort build_measure measures_for sort_of source_of",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
