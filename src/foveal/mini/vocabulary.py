"""Every word the model knows whole, and the words it must spell.

Words drawn in a scene are never whole tokens: each is read, and answered, letter by letter, so that a word never
seen in training can be read too.
"""

from __future__ import annotations

from foveal.mini.atlas import CATEGORIES, CLASSES, COLORS

__all__ = ["CHINESE", "HELD_OUT_WORDS", "SIGN_WORDS", "WORDS", "spellable"]

_PLAIN = """
a an the is are am was be been do does did has have can could will would should may must not no yes none nothing
i you he she it we they me my your his her its our their this that these those there here
what where which who whose when why how many much more most less least few any some all each every both other same
different one two three four five six seven eight nine ten zero first second last next
in on at of to from for with without by into behind before after under over above below between beside near inside
outside against around through across along about and or but if then than so as else only also just very too
left right top bottom middle center centre corner side row column cell upper lower front back up down
image picture pictures photo scene object objects thing things item items animal animals food foods vehicle vehicles
sign word words text letter letters name names number color colour colors colours disc discs plate circle shape shapes
background kind type size big small large tiny bright dark light
written say says said read reads show shows shown see seen look looks visible present absent appear appears contain
contains describe list tell give find count choose select pick answer answers question questions option options choice
choices given directly using use single phrase short please provided information insufficient respond unanswerable
unsure cannot sure detail details caption summary brief briefly following correct
rectangle triangle gray teal brown pink square
""".split()

_ENGLISH = tuple(
    dict.fromkeys([*_PLAIN, *(item.name for item in CLASSES), *CATEGORIES, *COLORS]),
)

WORDS: tuple[str, ...] = _ENGLISH

_CHINESE_TEXT = (
    "图中有没几个什么在是的吗哪里哪种颜色圆盘后面上下左右中间角边正位置请选择答案物体东西数量片里一二三四五六零"
    "以于方这那不和字写着单词正确选项直接回答动食车辆品后"
)

CHINESE: str = "".join(
    dict.fromkeys(
        _CHINESE_TEXT
        + "".join(item.chinese for item in CLASSES)
        + "".join(CATEGORIES.values())
        + "".join(chinese for _, chinese in COLORS.values())
    )
)

_SPELLED = """
ace act add age aid aim air ale arc ark arm art ash awe axe bag bat bay bed beg bet bid bin bit bog bow bud bug bun buy
cab cap cod cog cop cot cow cry cub cue cup cut dam day den dew dig dim dip dot dry due dug dye ear eat ebb eel egg ego
elf elk elm end era eve eye fan far fat fed fee fin fir fit fix flu fly fog fun fur gap gas gel gem get gin god gum gun
guy gym ham hay hen hip hit hop hub hug hum hut ice ill ink jam jar jaw jet job jog joy jug keg kid kin kit lab lad lap
law lay leg lid lie lip lit log lot low mad map mat mix mob mom mop mud mug nap net nib nod nut oak oar odd oil opt our
owe own pad pal pan pat paw pay pea pen pet pie pin pit pod pop pot pub pun pup rag ram ran rat raw ray rib rid rim rip
rob rod rot rub rug rum run rye sad sap saw sea set sew shy sin sip sir sit sky sly sob son sow spa spy sub sue sum sun
tab tag tan tap tar tax tea tip toe ton tow toy try tub tug van vat vet vow wag war wax way web wed wet wig win wit woe
wok won yak yam yap yell zap zip zoo bake bald band bark barn base bath bead beam bean bear beat beef bell belt bend
bird blow blue bold bolt bomb bone boot bowl bulb bulk bush busy cafe cage calm camp card cart cash cave chef chip city
clay clip club coal coat code coin cold cook cool copy cord cost cozy crew crop cube cure curl dawn deep deer desk dice
dish dive dock dome door dove drum dual duck dune dusk dust duty edge envy exit face fact fame farm fast fern film fire
flag flat flow foam fold folk fork fort fuel gate gift glow glue goal goat gold golf grid grip gulf hair half hall hand
harp hawk heat herb hero hill hint hive hold hole home hood hook hope horn host hunt idea jazz join joke jump jury keen
kelp king kite knee knot lace lake lamb lamp lane lava lawn leaf lemon limb lime lion loaf lock loft logo loud luck lung
maze meal melt menu mild milk mill mint mist moon moss moth myth navy nest opal open oven pace pack palm park path peak
pear pine pipe plan plum poem pole pond pony pool port pump quiz raft rail rain ramp reef rice ring road robe rock roof
room root rope rose ruby rust safe sail salt sand seal seed shoe shop silk sing sink skin snow soap soda sofa soil song
soup star stem step surf swan tail tape taxi tent tide tile town tree tube tuna vase vest vine wall wave weed well west
wind wing wolf wood wool yarn yoga zero zone
""".split()


def spellable(word: str) -> bool:
    """Whether the tokenizer splits `word` into single letters: no beginning of it is a word it knows."""
    return not any(word[:end] in _WHOLE for end in range(2, len(word) + 1))


_WHOLE = frozenset(WORDS)
_SIGNS = tuple(word for word in dict.fromkeys(_SPELLED) if len(word) in (3, 4) and spellable(word))

HELD_OUT_WORDS: tuple[str, ...] = _SIGNS[::5]
SIGN_WORDS: tuple[str, ...] = tuple(word for word in _SIGNS if word not in set(HELD_OUT_WORDS))
