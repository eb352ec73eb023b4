"""Pictures to look at: sheets, film strips, contact sheets, plots, the gallery, nearest neighbours."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "album": "Album Entry open_album",
    "chart": "WIDTH draw_chain",
    "gallery": "PAGE write_gallery",
    "measures": "plot_evaluation",
    "panels": "Panel View make_view panel_of panel_of_part",
    "plots": "Wanted draw_sample draw_sheet plot_album plots_folder",
    "retrieval": "as_rows draw_neighbours feature_row load_features nearest",
    "saving": "save_drawing",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
