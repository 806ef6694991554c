"""What each emoji is: an English noun, what it can do (tags), where a face has its eyes and mouth, and its side of the split.

The art is named by code point; the names come from the Unicode database, shortened. Tags decide which verbs make sense
on a sprite. All variants of one code point (skin tones, static and animated, both drawing styles) share one split.
"""

import hashlib
import re
import unicodedata

TEST_SHARE = 8  # one code point in this many is held out, per group of tags

_RANGES = [
    (0x1F300, 0x1F64F),
    (0x1F680, 0x1F6FC),
    (0x1F900, 0x1F9FF),
    (0x1FA70, 0x1FAFF),
    (0x2600, 0x2757),
    (0x231A, 0x231B),
]
_RANGES += [(0x23F0, 0x23F3), (0x1F0CF, 0x1F0CF), (0x2B50, 0x2B50), (0x2764, 0x2764)]
_NOT_OBJECTS = re.compile(
    r"symbol|square|arrow|\bsign\b|clock face|keycap|cjk|\binput\b|mark\b|\bcross\b|heavy|sunrise|sunset|cityscape|night|foggy|"
    r"milky way|bridge at|national park|restroom|passport|customs|baggage|left luggage|water closet|no entry|do not|non-potable|"
    r"children crossing|elevator|staff of|yin yang|wheel of dharma|star of david|cinema|scorpius|"
    r"aries|taurus|gemini|cancer|leo$|virgo|libra|sagittarius|capricorn|aquarius|pisces|ophiuchus|permanent|gender|"
    r"place of worship|hot springs|dotted line|hole$|spider web|^splashing|collision|dash |sleeping symbol|fireworks|"
    r"backhand|middle finger|cigarette|smoking|pistol|hocho|dagger|bomb|coffin|funeral|syringe|drop of blood|bikini|briefs|hexagram|"
    r"six pointed|silhouette|celebration|holding hands|vibration|compression|direct hit|viewing ceremony|of japan|together|biting|melting|mobile phones?$|no bicycles|no pedestrians|antenna with|in the viewer|at the viewer|breast|pregnant|sleeping acc|\bom\b|kaaba|mosque|synagogue|menorah|pile of poo|radioactive|biohazard|skull and|high voltage|black spade|"
    r"black club|black heart suit|black diamond|chess|recycling|wheelchair symbol|fleur|multiplication|asterisk|eight|sparkle$"
)

_NOUNS = {
    "1f3c3": "runner", "1f6b6": "walker", "1f483": "dancer", "1f57a": "dancer", "1f46f": "dancers", "1f938": "acrobat",
    "1f44b": "hand", "1f590": "hand", "270b": "hand", "1f91a": "hand", "1f3f3": "flag", "1f3f4": "flag", "1f3c1": "flag",
    "1f6a9": "flag", "1f38c": "flags", "26c8": "storm cloud", "1f329": "storm cloud", "1f32a": "tornado", "1f327": "rain cloud",
    "1f328": "snow cloud", "1f6eb": "airplane", "1f6ec": "airplane", "1f6e9": "airplane", "1f6f8": "flying saucer",
    "1f645": "person", "1f647": "person", "1f646": "person", "1f64b": "person", "1f926": "person", "1f937": "person",
    "1f697": "car", "1f698": "car", "1f699": "car", "1f41d": "bee", "1f54a": "dove", "1f41f": "fish", "1f420": "fish",
    "1f421": "fish", "1f33d": "corn", "1f346": "eggplant", "1f40e": "horse", "1f42a": "camel", "1f42b": "camel",
    "1f996": "dinosaur", "1f995": "dinosaur", "1f993": "zebra", "1f992": "giraffe", "1f98a": "fox", "1f981": "lion",
    "1f984": "unicorn", "26bd": "ball", "26be": "ball", "1f3c0": "ball", "1f3d0": "ball", "1f3c8": "ball", "1f381": "present",
    "1f63a": "cat", "1f47b": "ghost", "1f47d": "alien", "1f916": "robot", "1f3ca": "swimmer", "1f3c4": "surfer",
    "1f6a3": "rowboat", "1f68c": "bus", "1f68e": "bus", "1f692": "fire truck", "1f69a": "truck", "1f69b": "truck",
    "1f682": "train", "1f684": "train", "1f685": "train", "1f686": "train", "1f3ce": "race car", "1f3cd": "motorcycle",
    "1f422": "turtle", "1f4a1": "light bulb", "1f4bb": "laptop", "1f4f1": "phone", "260e": "telephone", "2615": "cup",
    "1f355": "pizza", "1f354": "burger", "1f366": "ice cream", "1f369": "donut", "1f382": "cake", "2b50": "star",
    "1f31f": "star", "1f31e": "sun", "2600": "sun", "1f31d": "moon", "1f319": "moon", "1f30d": "globe", "1f30e": "globe",
    "1f332": "tree", "1f333": "tree", "1f334": "palm tree", "1f339": "rose", "1f337": "flower", "1f33c": "flower",
    "1f436": "dog", "1f431": "cat", "1f42d": "mouse", "1f439": "hamster", "1f430": "rabbit", "1f43b": "bear", "1f43c": "panda",
    "1f428": "koala", "1f42f": "tiger", "1f42e": "cow", "1f437": "pig", "1f438": "frog", "1f435": "monkey", "1f434": "horse",
    "1f423": "chick", "1f424": "chick", "1f425": "chick", "1f54b": "box", "1f9d1": "person", "1f468": "man", "1f469": "woman",
    "1f476": "baby", "1f33b": "sunflower", "26c4": "snowman", "2603": "snowman", "1f385": "santa", "1f4fa": "television",
    "2708": "airplane", "1f41e": "ladybug", "1f6f6": "canoe", "1f426": "bird", "1f32b": "cloud", "1f324": "cloud",
    "1f325": "cloud", "1f326": "cloud", "26c5": "cloud", "1facf": "donkey", "1face": "moose", "1fabf": "goose",
    "1fabc": "jellyfish", "1fadb": "pea pod", "1fada": "ginger", "1fabb": "hyacinth", "1fabd": "wing", "1fa87": "maracas",
    "1fa88": "flute", "1faad": "fan", "1faae": "comb", "1fa75": "heart", "1fa76": "heart", "1fa77": "heart",
    "2764": "heart", "1f493": "heart", "1f49b": "heart", "1f499": "heart", "1f49a": "heart", "1f49c": "heart", "1f9e1": "heart",
    "1f494": "heart", "1f90d": "heart", "1f90e": "heart", "1f5a4": "heart",
}  # fmt: skip


def _points(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAGGED = {
    "wing": _points(
        "1f985 1f98b 1f987 1f54a 1f99c 1f41d 1f986 1f426 1f9a2 1f989 1f99a 1f9a9 1f414 1f413 1f424 1f425 1f427 1f983 1f9a4 "
        "1f409 1fab0 1f99f 1f41e 1fabf 1f9da 1fabd"
    ),
    "flag": _points("1f3f3 1f3f4 1f3c1 1f6a9 1f38c 1f38f 1f9e3 1f397 1f380"),
    "hand": _points("1f44b 1f590 270b 1f91a 1f596 1f918 1f91f 270c 261d 1f44d 1f448 1f44a 270a 1f91e 1f919 1faf3 1faf1 1faf2"),
    "cloud": _points("26c8 1f329 1f32a 1f327 1f328 2601 1f325 26c5 1f324 1f326 1f32b 1f4ad 1f4a8 1f32c"),
    "fish": _points("1f41f 1f420 1f421 1f42c 1f988 1f40b 1f433 1f9ad 1f990 1f991 1f419 1fabc 1f40a 1f422 1f99e 1f3ca"),
    "boat": _points("26f5 1f6a3 1f6f6 26f4 1f6a4 1f6f3 1f6a2 1f6e5"),
    "rocket": _points("1f680"),
    "plane": _points("2708 1f6eb 1f6e9 1f6f8 1f681 1f6f0"),
    "runner": _points(
        "1f3c3 1f6b6 1f40e 1f406 1f405 1f415 1f429 1f408 1f404 1f402 1f403 1f416 1f417 1f40f 1f411 1f410 1f42a 1f42b "
        "1f999 1f98c 1f400 1f401 1f407 1f43f 1f994 1f99d 1f418 1f98f 1f99b 1f998 1f996 1f995 1f9ac 1facf 1face 1f9ae "
        "1f9a8 1f9a1 1f98e 1f993 1f984 1f998 1f9a3"
    ),
    "dancer": _points("1f483 1f57a 1f46f 1f938 1f9d1 1f468 1f469 1f467 1f466 1f474 1f475 1f482 1f977 1f9d9 1f9b8 1f916 1f9d8"),
    "heart": _points("2764 1f493 1f49b 1f499 1f49a 1f49c 1f9e1 1f494 1f90d 1f90e 1f5a4 1fa75 1fa76 1fa77 1f496 1f497 1f49f 1fac0"),
    "animal_face": _points(
        "1f42d 1f42e 1f42f 1f430 1f431 1f434 1f435 1f436 1f437 1f438 1f439 1f43a 1f43b 1f43c 1f428 1f98a 1f981 1f63a 1f47b "
        "1f47d 1f916 1f31d 1f31e 1f383"
    ),
    "person_face": _points("1f476 1f9d2 1f466 1f467 1f9d1 1f468 1f469 1f9d3 1f474 1f475 1f471 1f9d4"),
}  # fmt: skip

# Emoji faces whose eyes are open, and whose mouth is free to bend.
_OPEN_EYES = _points(
    "1f600 1f603 1f642 1f622 1f641 1f610 1f636 1f620 1f621 1f61f 1f615 1f62f 1f62e 1f626 1f627 1f628 1f633 1f62c 1f611 1f92d "
    "1f914 1f928 1f97a 1f632 1f630 1f631 1f635 1f922 1f976 1f975 1f92a 1f61b 1f60f 1f612 1f644 1f913 1f911 2639 263a 1f979 "
    "1f974 1fae4 1fae8 1f643 1f917 1f92c"
)
_MOUTHS = _points(
    "1f600 1f603 1f604 1f601 1f606 1f605 1f60a 1f642 1f622 1f641 1f610 1f620 1f621 1f61f 1f615 1f60d 1f60b 1f609 1f60c 1f60e 1f61e "
    "1f614 1f60f 1f612 1f626 1f627 1f625 1f613 1f633 1f623 1f624 1f929 1f970 1f97a 1f920 1f913 1f635 1f607 1f608 1f629 1f62b "
    "1f62d 1f611 1f9d0 1f928 1f914 1f92a 1f975 1f976 1f979 2639 263a 1fae4 1f972 1f644"
)

# Boxes in the sprite's own coordinates (-1..1, x right, y down): centres of the eyes (±x, y), their radius, the mouth's centre.
FACE_BOXES = {
    "emoji": {"eye_x": 0.36, "eye_y": -0.28, "eye_r": 0.30, "mouth_y": 0.32, "mouth_w": 0.52},
    "animal": {"eye_x": 0.22, "eye_y": -0.08, "eye_r": 0.20, "mouth_y": 0.48, "mouth_w": 0.36},
    "person": {"eye_x": 0.25, "eye_y": 0.10, "eye_r": 0.18, "mouth_y": 0.52, "mouth_w": 0.30},
}


def base_code(name: str) -> str:
    """The first code point of a file name such as "1f3c3-1f3fb-200d-2640-fe0f": the identity that the split follows."""
    return name.split("-")[0].lower()


def is_object(code: str) -> bool:
    """Whether the emoji shows a thing, being or face that can stand in a photo, rather than a sign or a letter."""
    point = int(code, 16)
    if not any(low <= point <= high for low, high in _RANGES):
        return False
    return code in _NOUNS or not _NOT_OBJECTS.search(unicodedata.name(chr(point), "symbol").lower())


def noun(code: str) -> str:
    """A short lower-case English noun, e.g. "eagle" or "race car"."""
    if code in _NOUNS:
        return _NOUNS[code]
    name = unicodedata.name(chr(int(code, 16)), "thing").lower()
    if re.search(r"\bface\b|faced", name) and 0x1F600 <= int(code, 16) <= 0x1F978:
        return "face"
    name = re.sub(
        r"\bemoji\b|black |white |lower left |front-facing |\bface$|^slice of |^person |^open |^closed ", "", name
    )
    name = re.split(r" (?:with|and|of|in|on|without|off|doing|facing) ", name)[0]
    words = name.replace("-", " ").split()
    return " ".join(words[-2:]) if words else "thing"


def tags(code: str) -> frozenset[str]:
    """What the sprite is good for, e.g. {"wing"}; emoji faces carry "face" and, where it holds, "mouth" and "eyes"."""
    found = {tag for tag, codes in _TAGGED.items() if code in codes}
    if code in _OPEN_EYES or code in _MOUTHS:
        found.add("face")
    if code in _OPEN_EYES or "animal_face" in found or "person_face" in found:
        found.add("eyes")
    if code in _MOUTHS or "animal_face" in found or "person_face" in found:
        found.add("mouth")
    return frozenset(found)


def looks_aside(code: str) -> bool:
    """Whether the emoji is seen from the side, so that it has a way forward: to the left, as emoji are drawn."""
    sideways = tags(code) & {"runner", "fish", "boat", "plane", "rocket", "wing"}
    return bool(sideways) or 0x1F680 <= int(code, 16) <= 0x1F6FF or code in ("1f3ce", "1f3cd", "1f3c7", "1f3c2", "26f7")


def face_box(code: str) -> dict[str, float] | None:
    """Where eyes and mouth lie, or None for what has no face."""
    for tag, style in (("animal_face", "animal"), ("person_face", "person")):
        if code in _TAGGED[tag]:
            return FACE_BOXES[style]
    return FACE_BOXES["emoji"] if code in _OPEN_EYES or code in _MOUTHS else None


def split_codes(codes: list[str]) -> dict[str, str]:
    """ "train" or "test" for each code point: about one in TEST_SHARE of every group is held out, chosen by a hash.

    Groups are the sets of tags, so that each verb's own sprites (wings, clouds, faces …) occur on both sides.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for code in sorted(set(codes)):
        first = sorted(tags(code))[:1]
        groups.setdefault(tuple(first), []).append(code)
    split = {}
    for members in groups.values():
        members.sort(key=lambda code: hashlib.sha256(code.encode()).hexdigest())
        held_out = len(members) // TEST_SHARE if len(members) >= TEST_SHARE else int(len(members) >= 4)
        split.update({code: "test" if i < held_out else "train" for i, code in enumerate(members)})
    return split
