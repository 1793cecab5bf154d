"""Which words of a caption name one of the 80 COCO object categories.

The table serves the comparison of attention maps with object masks
(`captioner.evaluation.attention`), which needs the very word that names an object. (CHAIR counts by
its authors' own list, see `captioner.metrics.chair`.) It prefers silence to a wrong match:

- A compound counts once, at its **last** word ("hot dog" at "dog", "laptop computer" at
  "computer"), for with that word the name is complete. Its other words name nothing. The one
  exception is "glass of wine": it counts at "glass".
- A name that only qualifies another noun names nothing: "train" in "train station", "baby" in
  "baby elephant".
- Words with two common readings count only where the sentence settles the reading: `bat`, `glove`,
  `mitt` and `pitcher` beside a word of baseball, `mouse` beside a word of computing, `glass` only
  in "wine glass" and "glass of wine", `tie` not as a verb, `remote` not as in "remote beach".
  `orange` is far more often the colour: only `oranges` count.
- `top`, `board`, `baseball`, `basketball`, `ski`, `computer`, `cell`, `bag`, `sign`, `screen`,
  `couple`, `family`, `crowd`, `group` and `team` alone name nothing.

Words are those of `captioner.tokenizer.tokenize`: lower-case, without punctuation.
"""

from collections.abc import Sequence
from types import MappingProxyType


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Other names of each category; its own name always counts. Plurals follow by rule or from
# _IRREGULAR.
_NAMES = {
    "person": "man woman boy girl child kid baby toddler infant guy lady gentleman adult "
    "teenager teen player batter catcher pitcher umpire referee athlete skier snowboarder "
    "skateboarder skater surfer swimmer boarder biker bicyclist cyclist motorcyclist rider "
    "driver jockey cowboy pedestrian passenger tourist traveler commuter spectator bystander "
    "onlooker shopper customer vendor worker fisherman policeman officer cop soldier fireman "
    "firefighter chef waiter waitress farmer student teacher businessman bride groom mother "
    "father mom dad son daughter brother sister husband wife grandmother grandfather hiker "
    "jogger musician dancer",
    "bicycle": "bike",
    "car": "automobile taxi suv minivan sedan jeep",
    "motorcycle": "motorbike moped scooter",
    "airplane": "aeroplane plane jet airliner jetliner aircraft biplane seaplane",
    "bus": "minibus",
    "train": "locomotive",
    "truck": "firetruck",
    "boat": "sailboat rowboat speedboat motorboat canoe kayak ship ferry yacht gondola",
    "traffic light": "stoplight",
    "fire hydrant": "hydrant",
    "bench": "",
    "bird": "pigeon seagull gull goose duck duckling swan parrot parakeet owl eagle hawk "
    "penguin flamingo ostrich peacock heron pelican sparrow",
    "cat": "kitten kitty",
    "dog": "puppy pup",
    "horse": "pony foal stallion mare",
    "sheep": "lamb ewe",
    "cow": "bull ox calf cattle",
    "elephant": "",
    "bear": "",
    "zebra": "",
    "giraffe": "",
    "stop sign": "",
    "parking meter": "",
    "backpack": "knapsack rucksack",
    "umbrella": "parasol",
    "handbag": "purse",
    "tie": "necktie",
    "suitcase": "luggage",
    "frisbee": "",
    "skis": "",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "glove mitt",
    "skateboard": "",
    "surfboard": "",
    "tennis racket": "racket racquet",
    "bottle": "",
    "wine glass": "wineglass",
    "cup": "mug",
    "fork": "",
    "knife": "",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger cheeseburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake cheesecake",
    "chair": "armchair recliner",
    "couch": "sofa loveseat",
    "potted plant": "plant houseplant",
    "bed": "",
    "dining table": "table",
    "toilet": "",
    "tv": "television monitor",
    "laptop": "",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "phone cellphone smartphone iphone",
    "microwave": "",
    "oven": "stove",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddy",
    "hair drier": "hairdryer hairdrier",
    "toothbrush": "",
}
_IRREGULAR = {
    "person": "people men women children gentlemen fishermen policemen firemen businessmen wives",
    "bird": "geese",
    "cow": "oxen calves",
    "knife": "knives",
    "mouse": "mice",
}
# Compounds that the single words would get wrong; the last word may also stand in the plural.
_COMPOUNDS = {
    "motorcycle": "motor bike,motor cycle,dirt bike",
    "airplane": "passenger jet,passenger plane,jet plane,jet airplane,jet airliner",
    "bus": "passenger bus",
    "train": "passenger train,train car,train engine,train carriage",
    "truck": "fire engine",
    "boat": "passenger boat",
    "traffic light": "stop light,traffic signal",
    "bear": "bear cub",
    "dog": "sheep dog,bull dog",
    "backpack": "back pack",
    "handbag": "hand bag",
    "suitcase": "suit case",
    "frisbee": "flying disc",
    "snowboard": "snow board",
    "skateboard": "skate board",
    "surfboard": "surf board",
    "tennis racket": "tennis racquet",
    "bowl": "dog bowl,cat bowl",
    "carrot": "baby carrot",
    "cake": "carrot cake,cup cake",
    "hot dog": "chili dog",
    "oven": "pizza oven",
    "microwave": "microwave oven",
    "laptop": "laptop computer,lap top,lap top computer",
    "tv": "tv set,television set,flat screen,tv screen,television screen",
    "remote": "remote control,wii remote,wii controller,game controller,tv remote",
    "teddy bear": "stuffed bear,toy bear",
    "hair drier": "hair dryer,blow dryer,blow drier",
    "toothbrush": "tooth brush",
}
# Compounds that contain a name but mean no such object, or one that COCO may label otherwise.
_SILENT = (
    "snow man,pay phone,head phone,jet ski,pool table,ping pong table,coffee table,end table,"
    "side table,night table,bedside table,table tennis,table top,table runner,"
    "power plant,dog bed,cat bed,flower bed,truck bed,river bed,plane ticket,"
    "toaster oven,toilet bowl,pan cake,apple computer,apple laptop,rubber duck,"
    "ice cream sandwich,high chair,wheel chair,dvd player,record player,cd player,"
    "bus stop,train track,pizza box,pizza stand,bike rack,bike stand,car park,"
    "skateboard park,horse race,horse show,book cover,bed frame"
)
# Before these a name is a qualifier ("train station", "dog food"). No word that could also be the
# caption's verb.
_HEADS = _set(
    "station tracks yard depot lane terminal food house trailer rack paper lid tank seat "
    "lot garage shop store crust pan cutter cloth juice sauce tree trees peel bread cabinet "
    "counter room stem leash collar costume bridge shelf shelves case tower "
    "holder booth bath feeder cage bag string game court festival statue window windows "
    "door wheel wheels ramp trick tricks shaped themed drawn"
)
_BASEBALL = _set(
    "baseball batter batting batters swing swinging swings pitch pitching hit hitting "
    "umpire catcher mound softball throwing throws inning base"
)
_COMPUTING = _set("computer computers keyboard keyboards laptop laptops desk monitor monitors")
_CONTEXT = dict.fromkeys(_set("bat bats glove gloves mitt mitts pitcher pitchers"), _BASEBALL)
_CONTEXT |= dict.fromkeys(("mouse", "mice"), _COMPUTING)
_NOT_BEFORE = {
    "remote": _set("area areas beach island location place village field road controlled"),
    "tie": _set("a the his her their up down off"),
    "ties": _set("a the his her their up down off"),
}
_ANIMALS = _set("bird cat dog horse sheep cow elephant bear zebra giraffe")
# "baby elephant", "mother polar bear": an animal, no person.
_YOUNG_AND_OLD = _set("baby babies adult adults mother mothers mom infant toddler")

_FUNCTION_WORDS = _set(
    "a an the this that these those some another each every both all other his her hers "
    "its their my your our he she it they him them himself herself itself themselves who "
    "which what someone something there and or but while as with without of in on at to "
    "from by for into onto over under above below behind beside between near next "
    "through across along around against inside outside up down out off about after "
    "before during is are was were be been being has have had do does can will not n't "
    "'s so very than then where when if toward towards upon among atop like too also just"
)
_COLOURS = _set(
    "white black red green blue brown yellow orange gray grey pink purple tan silver gold "
    "golden beige"
)
_NUMBERS = _set("one two three four five six seven eight nine ten several many few multiple")


def plural(noun: str) -> str:
    """Return the regular English plural of a lower-case noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _single_words() -> dict[str, str]:
    """Return every one-word name, singular and plural, with its category."""
    table = {}
    for category, names in _NAMES.items():
        own = [] if " " in category else [category]
        for name in own + names.split():
            table[name] = table[plural(name)] = category
    for category, names in _IRREGULAR.items():
        table.update(dict.fromkeys(names.split(), category))
    del table["orange"]  # far more often the colour
    return table


def _phrases() -> dict[tuple[str, ...], str | None]:
    """Return every compound, as a tuple of words, with its category or None to silence it."""
    listed: list[tuple[str, str | None]] = [(name, name) for name in _NAMES if " " in name]
    for category, phrases in _COMPOUNDS.items():
        listed += [(phrase, category) for phrase in phrases.split(",")]
    listed += [(phrase, None) for phrase in _SILENT.split(",")]
    table: dict[tuple[str, ...], str | None] = {}
    for phrase, named in listed:
        *first, last = phrase.split()
        for form in (last, plural(last)):
            words = (*first, form)
            table[words] = named
    return table


CATEGORIES: tuple[str, ...] = tuple(_NAMES)
"""The 80 category names, as in COCO's `instances_*.json`."""

_WORDS = MappingProxyType(_single_words())
_PHRASES = MappingProxyType(_phrases())
_LONGEST = max(map(len, _PHRASES))


def name_categories(words: Sequence[str]) -> list[str | None]:
    """Return the COCO category that each word of a caption names, or None.

    Compounds are matched from left to right, the longest first; see the module text for the rules.

    Args:
        words: One caption as `captioner.tokenizer.tokenize` gives it.

    Returns:
        One entry per word.
    """
    named: list[str | None] = [None] * len(words)
    start = 0
    while start < len(words):
        end, category = _name_at(words, start)
        qualifier = end < len(words) and words[end] in _HEADS and category != "person"
        if not qualifier:
            named[end - 1] = category
        start = end
    for i, word in enumerate(words):
        if word in _YOUNG_AND_OLD and _qualifies_animal(words, named, i):
            named[i] = None
    return named


def word_class(word: str) -> str:
    """Return the class of a word that names no category: `function`, `colour`, `number`, `other`.

    Three closed lists decide; `other` is the rest: verbs, adjectives and the nouns that COCO has
    no category for.
    """
    if word in _FUNCTION_WORDS:
        return "function"
    if word in _COLOURS:
        return "colour"
    return "number" if word in _NUMBERS else "other"


def _qualifies_animal(words: Sequence[str], named: Sequence[str | None], i: int) -> bool:
    """Return whether an animal's name follows word `i` at once or after one adjective."""
    following = named[i + 1 : i + 3]
    if following and following[0] is None:
        between = words[i + 1]
        if between in _FUNCTION_WORDS or between.endswith("ing"):  # "a baby riding horses"
            return False
        following = following[1:]
    return bool(following) and following[0] in _ANIMALS


def _name_at(words: Sequence[str], start: int) -> tuple[int, str | None]:
    """Return the end of the name or compound that starts at `start`, and its category."""
    for length in range(min(_LONGEST, len(words) - start), 1, -1):
        phrase = tuple(words[start : start + length])
        if phrase in _PHRASES:
            return start + length, _PHRASES[phrase]
    word = words[start]
    if word in ("glass", "glasses") and tuple(words[start + 1 : start + 3]) == ("of", "wine"):
        return start + 1, "wine glass"
    category = _WORDS.get(word)
    if word in _CONTEXT and _CONTEXT[word].isdisjoint(words):
        category = None
    if start + 1 < len(words) and words[start + 1] in _NOT_BEFORE.get(word, ()):
        category = None
    return start + 1, category
