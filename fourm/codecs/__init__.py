"""File, value, tokens, picture: one codec for each kind of modality."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "colours": "GREY LegendEntry turbo",
    "crops": "count_crops read_crop read_crops write_crops",
    "drawing": "CANVAS Font Ink draw_boxes font_for lines_of text_card undrawable",
    "figures": "POSE_NUMBERS draw_figures",
    "files": "is_written_row read_array read_ids read_json read_picture read_size read_text write_ids",
    "forms": "FORMS",
    "images": "Diffusion GridCodec rows_at_once",
    "masks": "draw_instances",
    "pictures": "read_rgb",
    "sequences": "CaptionCodec encode_texts",
    "structured": "STRUCTURED StructuredCodec StructuredForm",
    "table": "Codec build_codec check_codec",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
