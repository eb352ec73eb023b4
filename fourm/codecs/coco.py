"""The 133 COCO panoptic categories in their usual order: 80 things, then 53 sorts of stuff, as published."""

# Kirillov et al. 2019, https://cocodataset.org/#panoptic-2019; the suffixes are those of the published table.
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush", "banner", "blanket", "bridge", "cardboard",
    "counter", "curtain", "door-stuff", "floor-wood", "flower", "fruit", "gravel", "house", "light",
    "mirror-stuff", "net", "pillow", "platform", "playingfield", "railroad", "river", "road", "roof",
    "sand", "sea", "shelf", "snow", "stairs", "tent", "towel", "wall-brick", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "window-blind", "window-other", "tree-merged", "fence-merged",
    "ceiling-merged", "sky-other-merged", "cabinet-merged", "table-merged", "floor-other-merged",
    "pavement-merged", "mountain-merged", "grass-merged", "dirt-merged", "paper-merged",
    "food-other-merged", "building-other-merged", "rock-merged", "wall-other-merged", "rug-merged",
)  # fmt: skip
NUM_COCO_LABELS = 1 + len(COCO_NAMES)  # with "no class"
# Their public colours, RRGGBB.
COCO_COLOURS = bytes.fromhex(
    "dc143c770b2000008e0000e66a00e4003c640050640000460000c0faaa1e64aa1edcdc00af74affa001ea52a2aff4dff"
    "00e2fcb6b6ff00520078a69d6e4c00ae39ffc76400480076ffb3f0007d5cd10097bcd0b600dcb0ff63a45c00498581ff"
    "4eb4ff00e400aefff32d59ff8686679194aeffd0bac5e2ffab86016d3f36cf8aff97005f09503d5469334a4169a6c466"
    "d0c3d2ff6d41008f95b300c2d1636a057900e3ffcd93bad0994501035fa1a3ff007700aa00b6c700a578b782585f2000"
    "8272876e8185a64a76db8eb94fd272b25a3e41460f7fa7733b696a8e6c2dc4ac005f3650804cffc93901f6007abfa2d0"
    "ffff8093d3cb966464a8abac9270c6d2aa645c8859da58b8f18100d911ff7c4ab5464646ffe4ff9ad000c1005c4c5b71"
    "ffb4c36a9ab0e6968c3c8fff8040805c5237fed47c494daeffa062ffffff68546da9a483e1c7ff89364a879edf07f6e7"
    "6bffc83a2995b7798eff49616b8e23be9999928b8d4682b486c79cd1e28c60246c60606040aa4098fb98d0e5e4cebaab"
    "98a14074700000728f66669cfa8dff"
)
