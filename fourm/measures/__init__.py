"""How good results are: measures of pictures, maps, texts and tokens, each of one process or of many."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "evaluation": "Evaluation Number intervals",
    "folder": "Asked measure_folder",
    "measure": "MeanOf Measure Pair Row Settings Value mean_of one_by_one",
    "pairs": "Pairs find_row list_pairs rows_of",
    "tables": "MEASURES build_measure",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
