"""File, value, tokens, picture: one codec for each kind of modality."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "colours": "COCO_NAMES GREY LegendEntry NO_CLASS UNKNOWN class_names turbo",
    "drawing": "CANVAS Ink draw_boxes font_for lines_of text_card undrawable",
    "figures": "POSE_NUMBERS draw_figures draw_instances find_joints",
    "files": """file_ending format_frame pack_array pack_crops pack_ids pack_png read_array read_caption
        read_crop read_crop_rows read_crops read_features read_frame read_ids read_json read_members
        read_picture read_size read_text read_turn write_crops""",
    "keeping": """Mask Part box_mask check_keep_mask framed_mask hide_pixels keep_pixels lay_over
        lay_over_whole mask_of_tokens read_keep_mask tokens_of_mask tokens_of_share""",
    "images": "Diffusion GridCodec TURN_ADVICE rows_at_once",
    "maps": "FORMS cut pixels_of read_pixels restore_map",
    "table": "Codec build_codec check_codec",
    "taking": "take take_ids take_map take_mask take_whole turn_upright",
    "texts": """CaptionCodec STRUCTURED StructuredCodec decoder_of encode_texts in_square read_structured
        read_whole""",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
