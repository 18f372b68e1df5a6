"""What the small catalogue is made of: invented brands, kinds of goods, and what is said of them."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of goods.

    Attributes:
        noun: one of them, in a title.
        query: several of them, as one would search.
        categories: from the widest to the narrowest.
        styles: words that begin a title.
        attributes: phrases that a product of the kind may have.
        options: what can be chosen, as (name, name of the pool of values).
        low, high: prices in dollars.
    """

    noun: str
    query: str
    categories: tuple[str, str, str]
    styles: tuple[str, ...]
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    low: int
    high: int


BRANDS = (
    *("Alderfold", "Brimwick", "Cassoway", "Dunmarrow", "Elmsprite", "Farrowlight", "Gildenmoor"),
    *("Hollisand", "Inkervale", "Juniper Gate", "Kestrelby", "Lowmarsh", "Mirefield", "Norrowind"),
    *("Oakhollow", "Pellgrave", "Quillstone", "Rookhaven", "Silverthorn", "Tarnbrook"),
    *("Underhay", "Vossmere", "Wrenfold", "Yarrowby"),
)

VALUES = {
    "cloth colours": (
        *("black", "cream", "rust red", "moss green", "sky blue", "charcoal grey", "plum purple"),
        *("mustard yellow", "sand beige", "navy blue"),
    ),
    "hard colours": ("black", "white", "silver", "copper", "walnut brown", "mint green"),
    "letter sizes": ("x-small", "small", "medium", "large", "x-large", "xx-large"),
    "shoe sizes": ("6", "7", "8", "9", "10", "11", "12"),
    "waist sizes": ("28", "30", "32", "34", "36", "38"),
    "rug sizes": ("2 x 3 feet", "3 x 5 feet", "4 x 6 feet", "5 x 8 feet"),
    "bed sizes": ("twin", "full", "queen", "king"),
    "volumes": ("12 ounce", "18 ounce", "24 ounce", "32 ounce"),
    "scents": ("cedar", "lavender", "orange blossom", "rain", "vanilla", "no scent"),
    "flavours": ("ginger", "lemon", "peppermint", "cinnamon", "plain", "dark cherry"),
    "packs": ("pack of 1", "pack of 2", "pack of 4", "pack of 6"),
    "cable lengths": ("3 feet", "6 feet", "10 feet"),
    "fits": ("slim fit", "regular fit", "relaxed fit"),
}

_CLOTH = ("cloth colours", "letter sizes")

KINDS = (
    Kind(
        "rain jacket", "rain jackets", ("Clothing", "Outdoor", "Jackets"),
        ("city", "trail", "harbor", "meadow"),
        ("waterproof seams", "packs small", "storm hood", "deep pockets", "machine washable",
         "reflective trim", "two way zipper", "wind stopping"),
        (("color", _CLOTH[0]), ("size", _CLOTH[1])), 35, 120,
    ),
    Kind(
        "wool sweater", "wool sweaters", ("Clothing", "Everyday", "Sweaters"),
        ("fisher", "cabin", "cable", "classic"),
        ("hand wash", "ribbed cuffs", "crew neck", "itch free", "long sleeves", "moth resistant",
         "elbow patches", "roll collar"),
        (("color", _CLOTH[0]), ("size", _CLOTH[1])), 30, 95,
    ),
    Kind(
        "work trousers", "work trousers", ("Clothing", "Everyday", "Trousers"),
        ("builder", "garden", "studio", "field"),
        ("deep pockets", "machine washable", "stretch waist", "double knees", "button fly",
         "tear resistant", "hammer loop", "quick drying"),
        (("color", _CLOTH[0]), ("size", "waist sizes"), ("fit type", "fits")), 25, 80,
    ),
    Kind(
        "summer dress", "summer dresses", ("Clothing", "Everyday", "Dresses"),
        ("picnic", "beach", "market", "garden"),
        ("side pockets", "hand wash", "high waist", "short sleeves", "ruffled hem", "quick drying",
         "fully lined", "button front"),
        (("color", _CLOTH[0]), ("size", _CLOTH[1])), 20, 75,
    ),
    Kind(
        "walking shoes", "walking shoes", ("Clothing", "Shoes", "Walking"),
        ("coast", "village", "ridge", "daily"),
        ("rubber sole", "arch support", "memory foam", "wide toe box", "slip resistant",
         "waterproof seams", "pull tab", "reflective trim"),
        (("color", _CLOTH[0]), ("size", "shoe sizes")), 40, 130,
    ),
    Kind(
        "house slippers", "house slippers", ("Clothing", "Shoes", "Slippers"),
        ("hearth", "morning", "attic", "quiet"),
        ("memory foam", "rubber sole", "fleece lining", "machine washable", "open back",
         "slip resistant", "no smell"),
        (("color", _CLOTH[0]), ("size", "shoe sizes")), 12, 45,
    ),
    Kind(
        "throw pillow", "throw pillows", ("Home", "Living Room", "Pillows"),
        ("prairie", "loft", "nordic", "painted"),
        ("hidden zipper", "machine washable", "double sided", "feather filled", "fade resistant",
         "tasseled corners", "piped edges"),
        (("color", _CLOTH[0]), ("size", "packs")), 10, 40,
    ),
    Kind(
        "area rug", "area rugs", ("Home", "Living Room", "Rugs"),
        ("prairie", "loft", "geometric", "woven"),
        ("stain resistant", "slip resistant", "low pile", "safe for pets", "fade resistant",
         "hand woven", "easy to vacuum"),
        (("color", _CLOTH[0]), ("size", "rug sizes")), 30, 160,
    ),
    Kind(
        "bed sheet set", "bed sheets", ("Home", "Bedroom", "Bedding"),
        ("linen", "percale", "moonlit", "guest"),
        ("machine washable", "deep corners", "wrinkle free", "stays cool", "gentle on skin",
         "thick elastic", "fade resistant"),
        (("color", _CLOTH[0]), ("size", "bed sizes")), 25, 110,
    ),
    Kind(
        "desk lamp", "desk lamps", ("Home", "Office", "Lamps"),
        ("drafting", "reading", "library", "studio"),
        ("dimmable light", "bendable neck", "usb port", "heavy base", "touch switch",
         "energy saving", "warm glow", "clamp mount"),
        (("color", "hard colours"),), 18, 90,
    ),
    Kind(
        "water bottle", "water bottles", ("Home", "Kitchen", "Bottles"),
        ("summit", "commuter", "lunch", "river"),
        ("leak proof", "double walled", "safe for dishwashers", "wide mouth", "carry loop",
         "straw lid", "no plastic"),
        (("color", "hard colours"), ("size", "volumes")), 10, 45,
    ),
    Kind(
        "cooking pan", "cooking pans", ("Home", "Kitchen", "Cookware"),
        ("copperline", "farmhouse", "bistro", "campfire"),
        ("nothing sticks", "oven safe", "cool handle", "heavy base", "safe for dishwashers",
         "pour spout", "glass lid", "induction ready"),
        (), 20, 110,
    ),
    Kind(
        "hand soap", "hand soaps", ("Beauty", "Bath", "Soap"),
        ("kitchen", "botanic", "old town", "spring"),
        ("gentle on skin", "plant based", "cruelty free", "no dyes", "refill pouch",
         "rich lather", "made with oats"),
        (("scent", "scents"), ("size", "packs")), 5, 28,
    ),
    Kind(
        "face cream", "face creams", ("Beauty", "Skin", "Creams"),
        ("dawn", "alpine", "dew", "winter"),
        ("cruelty free", "gentle on skin", "sun protection", "absorbs fast", "plant based",
         "no parabens", "glass jar"),
        (("scent", "scents"),), 9, 60,
    ),
    Kind(
        "herbal tea", "herbal teas", ("Grocery", "Drinks", "Tea"),
        ("monastery", "evening", "hillside", "winter"),
        ("caffeine free", "organic leaves", "plastic free bags", "loose leaf", "no sugar",
         "resealable tin", "fair trade"),
        (("flavor", "flavours"), ("size", "packs")), 6, 30,
    ),
    Kind(
        "charging cable", "charging cables", ("Electronics", "Phones", "Cables"),
        ("braided", "travel", "desk", "heavy duty"),
        ("fast charging", "tangle free", "gold plated", "bends safely", "data transfer",
         "status light", "lifetime warranty"),
        (("color", "hard colours"), ("size", "cable lengths")), 6, 35,
    ),
    Kind(
        "wireless speaker", "wireless speakers", ("Electronics", "Audio", "Speakers"),
        ("garden", "shelf", "pocket", "party"),
        ("long battery", "floats on water", "dust proof", "stereo pair", "carry loop",
         "fast charging", "radio tuner", "deep bass"),
        (("color", "hard colours"),), 20, 150,
    ),
)  # fmt: skip

ATTRIBUTES = {
    "absorbs fast": "It is gone from the surface within a minute.",
    "arch support": "The inner sole is raised where the foot needs it.",
    "bendable neck": "Point it wherever you are looking.",
    "bends safely": "The ends were bent ten thousand times in our tests.",
    "button front": "Buttons run from the collar to the hem.",
    "button fly": "Five metal buttons instead of a zip.",
    "caffeine free": "Nothing in it keeps you awake.",
    "carry loop": "A strap at the top takes one finger or a hook.",
    "clamp mount": "It grips boards up to two inches thick.",
    "cool handle": "You can hold it without a cloth.",
    "crew neck": "The collar is round and close.",
    "cruelty free": "No animal was harmed for it.",
    "data transfer": "Moves pictures as well as power.",
    "deep bass": "You can feel the low notes.",
    "deep corners": "They hold on to mattresses of up to sixteen inches.",
    "deep pockets": "Room for a phone, keys and a map.",
    "dimmable light": "Ten steps from bright to barely there.",
    "double knees": "A second layer where you kneel.",
    "double sided": "The pattern is on the back, too.",
    "double walled": "Keeps ice for a day and soup for half of one.",
    "dust proof": "Sand stays outside.",
    "easy to vacuum": "Crumbs come up in one go.",
    "elbow patches": "Suede where the arms rest.",
    "energy saving": "Runs a whole year for the price of a coffee.",
    "fade resistant": "Stays bright by a sunny window.",
    "fair trade": "The growers are paid properly.",
    "fast charging": "Half full after half an hour.",
    "feather filled": "Plump, and easily shaken up again.",
    "fleece lining": "Warm and fluffy inside.",
    "floats on water": "Drop it into the pool and fish it out.",
    "fully lined": "Nothing shows through.",
    "gentle on skin": "Tested on people who react to nearly everything.",
    "glass jar": "Comes in a pot that can be used again.",
    "glass lid": "Watch the food without letting the steam out.",
    "gold plated": "The contacts do not corrode.",
    "hammer loop": "A place for a tool at the side.",
    "hand wash": "Lukewarm water and a little patience.",
    "hand woven": "Every piece is a bit different.",
    "heavy base": "It stands firmly, whatever you do.",
    "hidden zipper": "You will have to look for the closure.",
    "high waist": "Sits above the hips.",
    "induction ready": "Works on every kind of stove.",
    "itch free": "Soft enough for a bare neck.",
    "leak proof": "Lie it down in a bag full of papers.",
    "lifetime warranty": "If it ever breaks, we send another.",
    "long battery": "Twenty hours between two charges.",
    "long sleeves": "Down to the wrists.",
    "loose leaf": "For your own pot or strainer.",
    "low pile": "Doors open over it.",
    "machine washable": "Cold, with everything else.",
    "made with oats": "The grain calms and softens.",
    "memory foam": "Takes the shape of your foot.",
    "moth resistant": "Can be stored all summer.",
    "no dyes": "The color is that of its ingredients.",
    "no parabens": "Keeps without the usual preservatives.",
    "no plastic": "Steel, wood and cork only.",
    "no smell": "A treated insole keeps it fresh.",
    "no sugar": "Nothing was added to sweeten it.",
    "nothing sticks": "Eggs slide out by themselves.",
    "open back": "Slip in without bending down.",
    "organic leaves": "Grown without sprays.",
    "oven safe": "Up to 450 degrees.",
    "packs small": "Folds into a pouch the size of a fist.",
    "piped edges": "A cord runs around the seam.",
    "plant based": "Nothing in it comes from an animal.",
    "plastic free bags": "They rot on the compost.",
    "pour spout": "Sauces go where they should.",
    "pull tab": "A strap at the heel helps you in.",
    "quick drying": "Wet at noon, wearable at one.",
    "radio tuner": "Finds the local stations by itself.",
    "refill pouch": "Fill up your old dispenser.",
    "reflective trim": "Drivers see you from far away.",
    "resealable tin": "Stays fresh to the last spoon.",
    "ribbed cuffs": "The ends stay in place.",
    "rich lather": "A single drop is enough.",
    "roll collar": "Fold it up when it gets cold.",
    "rubber sole": "Quiet, and good on wet stone.",
    "ruffled hem": "A little movement around the knees.",
    "safe for dishwashers": "Top rack or bottom.",
    "safe for pets": "Claws find no loops in it.",
    "short sleeves": "They end above the elbow.",
    "side pockets": "One on either hip, big enough for a phone.",
    "slip resistant": "Grips polished floors.",
    "stain resistant": "Wine beads up and is wiped off.",
    "status light": "A small dot tells when it is done.",
    "stays cool": "The weave lets air through.",
    "stereo pair": "Two of them play left and right.",
    "storm hood": "A stiff brim keeps rain off your face.",
    "straw lid": "Drink without tipping it.",
    "stretch waist": "Gives an inch after lunch.",
    "sun protection": "Blocks most of the harmful rays.",
    "tangle free": "It never knots in a drawer.",
    "tasseled corners": "Four small brushes of yarn.",
    "tear resistant": "Woven with a thread that stops rips.",
    "thick elastic": "It holds all the way around.",
    "touch switch": "Tap anywhere on the stem.",
    "two way zipper": "Opens from below as well.",
    "usb port": "Charge a phone from its foot.",
    "warm glow": "The tone of late afternoon.",
    "waterproof seams": "Taped from the inside.",
    "wide mouth": "Ice cubes fit through.",
    "wide toe box": "Space to spread out in front.",
    "wind stopping": "A tight weave keeps gusts out.",
    "wrinkle free": "Looks ironed out of the dryer.",
}

OPENINGS = (
    "{brand} makes this {noun} in small runs.",
    "A {noun} from {brand} for people who keep things long.",
    "Our {style} {noun} was drawn by {brand} and is checked by hand.",
    "This is the {noun} that {brand} is known for.",
)

REVIEWS = (
    "Does what it should.",
    "Better than my last one.",
    "Arrived early and well packed.",
    "I bought a second one for my sister.",
    "Good for the price.",
    "Looks like the picture.",
    "Not perfect, but I use it every day.",
    "Took a while to get used to.",
)

INSTRUCTIONS = (
    "I need {a noun}. It should be described as {attributes}.{options}{price}",
    "Please buy {a noun} for me. What matters: {attributes}.{options}{price}",
    "Could you find {a noun} with these properties: {attributes}?{options}{price}",
    "Order {a noun} that has {attributes} in its description.{options}{price}",
    "I am shopping for {query}; I want {attributes}.{options}{price}",
)
