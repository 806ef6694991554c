"""The photos that scenes stand on: file name, what they show, who took them, the licence, and the side of the split.

Test photos are never trained on: they are the samples that PyPI packages carry and a few of Debian's.
"""

from .art import PhotoInfo

_MATE = ("MATE backgrounds contributors (Debian mate-backgrounds)", "GPL-2+")
_PLASMA = ("KDE wallpaper contributors (Debian plasma-workspace-wallpapers)", "GPL-2+ or LGPL-3")
_LOMIRI = "Debian lomiri-wallpapers"
_SKIMAGE = "scikit-image sample data"


def _mate(name: str, description: str, split: str = "train") -> PhotoInfo:
    return PhotoInfo(name, description, *_MATE, split)


def _plasma(name: str, description: str, split: str = "train") -> PhotoInfo:
    return PhotoInfo(name, description, *_PLASMA, split)


def _lomiri(name: str, description: str, author: str, licence: str = "CC-BY-4.0", split: str = "train") -> PhotoInfo:
    return PhotoInfo(name, description, f"{author} ({_LOMIRI})", licence, split)


PHOTOS = (
    _mate("Aqua", "a drop of water"),
    _mate("Blinds", "a green leaf"),
    _mate("Dune", "grass on a dune", "test"),
    _mate("FreshFlower", "an orange flower"),
    _mate("Garden", "flowers in a garden"),
    _mate("GreenMeadow", "a green meadow"),
    _mate("LadyBird", "blue flowers"),
    _mate("RainDrops", "rain drops on leaves"),
    _mate("Storm", "a road under a dark sky"),
    _mate("TwoWings", "an orange garden"),
    _mate("Wood", "a pale wood"),
    _mate("YellowFlower", "a yellow flower"),
    _plasma("BytheWater", "a wooden pier by the water"),
    _plasma("ColdRipple", "a grey pier"),
    _plasma("ColorfulCups", "many cups"),
    _plasma("DarkestHour", "a dark lake"),
    _plasma("EveningGlow", "boats at a lake", "test"),
    _plasma("FallenLeaf", "leaves in autumn"),
    _plasma("Grey", "a white building"),
    _plasma("Kite", "a blue sky"),
    _plasma("OneStandsOut", "green plants"),
    _plasma("Path", "a path in a forest"),
    _plasma("Volna", "waves on a beach"),
    _plasma("summer_1am", "a pink sky over a lake"),
    _lomiri("Bridge_by_Sander_Klootwijk", "a bridge under a blue sky", "Sander Klootwijk", "CC-BY-SA-4.0"),
    _lomiri("Dragonfly_by_Bolly", "a tree with leaves", "Bolly", "CC-BY-SA-4.0"),
    _lomiri("Picture_0B_by_freespace", "a red bowl", "Trevor 'Freespace'"),
    _lomiri("Picture_1A_by_freespace", "paint brushes", "Trevor 'Freespace'", split="test"),
    _lomiri("Wine_by_Jakkub_Mede", "a table in a room", "Jakub Mede"),
    _lomiri("aitzgorri_by_Aitzol_Berasategi", "mountains in autumn", "Aitzol Berasategi"),
    _lomiri("free_by_Peter_Nerlich", "lamps in a room", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("friends_by_Aitzol_Berasategi", "a white house", "Aitzol Berasategi"),
    _lomiri("greentock_by_Peter_Nerlich", "a clock", "Peter Nerlich", "CC-BY-SA-4.0"),
    _lomiri("life_by_Aitzol_Berasategi", "a stream in a forest", "Aitzol Berasategi"),
    _lomiri("picosdeeuropa_by_Aitzol_Berasategi", "a path in the mountains", "Aitzol Berasategi"),
    _lomiri("seeding_by_Clements_Engelhardt", "a field of dandelions", "Clemens Engelhardt", "CC0-1.0"),
    _lomiri("sunset_by_Aitzol_Berasategi", "a sunset over hills", "Aitzol Berasategi", split="test"),
    _lomiri("Kleiber_by_Lukas_Baubkus", "the bark of a tree", "Lukas Baubkus", "CC-BY-SA-3.0"),
    PhotoInfo("motorcycle_left", "a motorcycle in a garage", f"Middlebury stereo data ({_SKIMAGE})", "CC0"),
    PhotoInfo("brick", "a brick wall", f"CC0 Textures ({_SKIMAGE})", "CC0"),
    PhotoInfo("grass", "grass", f"DigitalMaas ({_SKIMAGE})", "CC0"),
    PhotoInfo("gravel", "gravel", f"CC0 Textures ({_SKIMAGE})", "CC0"),
    PhotoInfo("astronaut", "an astronaut", f"NASA ({_SKIMAGE})", "public domain", "test"),
    PhotoInfo("rocket", "a rocket on a launch pad", f"SpaceX ({_SKIMAGE})", "CC0", "test"),
    PhotoInfo("chelsea", "a cat", f"Stefan van der Walt ({_SKIMAGE})", "CC0", "test"),
    PhotoInfo("coffee", "a cup of coffee", f"Rachel Michetti ({_SKIMAGE})", "CC0", "test"),
    PhotoInfo("china", "a temple", "danielbuechele on flickr (scikit-learn sample data)", "CC-BY-2.0", "test"),
    PhotoInfo(
        "flower",
        "a purple flower",
        "danielbuechele and vultilion on flickr (scikit-learn sample data)",
        "CC-BY-2.0",
        "test",
    ),
    PhotoInfo(
        "grace_hopper", "a woman in uniform", "United States Navy (Matplotlib sample data)", "public domain", "test"
    ),
)
