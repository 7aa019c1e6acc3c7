"""What the public benchmarks call their classes, and what people call the same things.

The first name of a class is the one its scores are reported under. Synonyms are the project's own
list of everyday words; results obtained with them carry another benchmark name.
"""

# PASCAL VOC 2012, labels 1-20 in this order; 0 is background. Spelled as mmsegmentation spells them.
VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip

VOC_SYNONYMS = {
    "aeroplane": ("airplane", "plane", "jet"),
    "bicycle": ("bike",),
    "boat": ("ship", "sailboat"),
    "car": ("automobile",),
    "cat": ("kitten",),
    "chair": ("armchair",),
    "cow": ("cattle", "bull", "calf"),
    "diningtable": ("dining table", "table"),
    "dog": ("puppy",),
    "horse": ("pony",),
    "motorbike": ("motorcycle",),
    "person": ("man", "woman", "child", "boy", "girl", "baby", "people"),
    "pottedplant": ("potted plant", "houseplant"),
    "sheep": ("lamb", "ram"),
    "sofa": ("couch",),
    "tvmonitor": ("tv", "television", "monitor", "screen"),
}

# COCO-Object, labels 1-80 in this order; 0 is background.
COCO_OBJECT = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

COCO_SYNONYMS = {
    "person": (
        "man", "woman", "child", "boy", "girl", "baby", "kid", "toddler", "guy", "lady", "gentleman",
        "people", "player", "batter", "pitcher", "catcher", "umpire", "skier", "snowboarder",
        "skateboarder", "surfer", "rider", "pedestrian", "worker", "chef", "officer",
    ),
    "bicycle": ("bike",),
    "car": ("automobile", "suv", "taxi", "cab", "sedan"),
    "motorcycle": ("motorbike", "scooter", "moped"),
    "airplane": ("aeroplane", "plane", "jet", "airliner", "aircraft"),
    "bus": ("minibus",),
    "train": ("locomotive",),
    "truck": ("lorry", "pickup"),
    "boat": ("ship", "sailboat", "canoe", "kayak", "ferry", "yacht"),
    "traffic light": ("traffic signal", "stoplight", "stop light"),
    "fire hydrant": ("hydrant",),
    "stop sign": ("stopsign",),
    "bird": ("pigeon", "seagull", "gull", "duck", "goose", "swan", "parrot", "owl", "eagle"),
    "cat": ("kitten", "kitty"),
    "dog": ("puppy", "pup"),
    "horse": ("pony", "foal"),
    "sheep": ("lamb", "ram"),
    "cow": ("cattle", "bull", "calf", "ox"),
    "bear": ("grizzly", "polar bear"),
    "backpack": ("rucksack", "knapsack"),
    "umbrella": ("parasol",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "suitcase": ("luggage", "baggage"),
    "frisbee": ("disc",),
    "skis": ("ski",),
    "sports ball": ("ball", "baseball", "soccer ball", "football", "basketball", "tennis ball"),
    "baseball bat": ("bat",),
    "baseball glove": ("mitt", "catcher's mitt"),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "wine glass": ("wineglass",),
    "cup": ("mug",),
    "sandwich": ("burger", "hamburger", "panini"),
    "hot dog": ("hotdog",),
    "donut": ("doughnut",),
    "cake": ("cupcake",),
    "chair": ("armchair", "stool"),
    "couch": ("sofa", "loveseat"),
    "potted plant": ("houseplant", "plant"),
    "dining table": ("table",),
    "tv": ("television", "monitor"),
    "laptop": ("laptop computer", "notebook computer"),
    "mouse": ("computer mouse",),
    "remote": ("remote control", "controller"),
    "cell phone": ("phone", "cellphone", "mobile phone", "smartphone"),
    "oven": ("stove",),
    "refrigerator": ("fridge",),
    "clock": ("clock tower",),
    "teddy bear": ("teddy", "stuffed bear"),
    "hair drier": ("hair dryer", "blow dryer"),
}  # fmt: skip

# Cityscapes, train ids 0-18 in this order; there is no background, other labels are ignored.
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip

# Label ids of the files for those train ids, in the same order.
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# Prompts for what is no object, for segmenters that name the background instead of thresholding it.
STUFF = (
    "sky", "grass", "tree", "road", "ground", "water", "wall", "floor", "building", "mountain",
    "sand", "snow", "ceiling",
)  # fmt: skip
