"""The words of the second edition: Lexicon, one for training and one kept for the test split.

No word of the one is in the other, nor in the first edition's WORDS if it is in the test lexicon. What a document always says
("Total", "Yes") is in neither; the makers write it.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.world.difficulty import WORDS


@dataclass(frozen=True)
class Lexicon:
    """Words by what they are for.

    Attributes:
        words: plain nouns, verbs and adjectives, lower case.
        products: what a receipt sells.
        first_names, last_names, places: of people and towns.
        shops: names of shops; titles: of windows and pages.
        fields: labels of a form, and how a question calls them alike; each has a rule that writes its values.
        actions: names of buttons; options: what a box is ticked for.
        measures: what a table or a chart counts.
    """

    words: tuple[str, ...]
    products: tuple[str, ...]
    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    places: tuple[str, ...]
    shops: tuple[str, ...]
    titles: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]
    actions: tuple[str, ...]
    options: tuple[str, ...]
    measures: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.split(","))


TRAIN = Lexicon(
    words=(
        *WORDS,
        *_words(
            "anchor autumn baker basket beach bell berry bottle branch bridge brush bucket butter button camera candle castle "
            "chair cheese circle cloud coffee copper corner cotton dance desert dinner dragon dream eagle early engine evening "
            "fabric farmer feather fence finger flower forest garden glass grape hammer harbor heavy honey island jacket "
            "jungle kitchen ladder lemon letter lion little market meadow metal mirror monkey morning mountain needle north "
            "ocean office orange orchard paper parrot pencil pepper pillow pirate planet pocket potato quiet rabbit ribbon "
            "river rocket sailor school shadow silver simple spider spring square summer table ticket tiger tower travel "
            "turtle valley velvet village violin wagon warm water west whisper window winter wonder yellow young"
        ),
    ),
    products=_words(
        "Bread Milk Butter Cheese Apples Bananas Coffee Tea Rice Pasta Sugar Flour Eggs Yogurt Honey Juice Water Soap Shampoo "
        "Candles Paper Pencils Socks Gloves Tomatoes Onions Carrots Salad Pizza Cookies Chocolate Salt Pepper Olives Tuna"
    ),
    first_names=_words(
        "Anna Ben Carla David Emma Felix Grace Henry Ida Jonas Kate Leo Maria Nina Oscar Paula Rosa Simon Tom Vera"
    ),
    last_names=_words(
        "Adams Baker Carter Dixon Evans Fisher Gray Harris Jones King Lewis Moore Nolan Owens Parker Reed Scott "
        "Turner"
    ),
    places=_words(
        "Berlin Cairo Dublin Geneva Helsinki Jakarta Kyoto Lagos Lima Madrid Milan Nairobi Oslo Paris Prague Quito "
        "Rome"
    ),
    shops=_lines("CORNER SHOP, Green Market, Daily Foods, The Pantry, City Store, RIVER DELI, Sunny Side, Old Mill, Home & Co"),
    titles=_lines("Settings, New file, Print, Sign in, Export, Preferences, Account, Search, Report, Summary, Overview"),
    fields=(
        ("Name", "person"), ("City", "place"), ("Phone", "phone"), ("Date of birth", "date"), ("Order number", "code"),
        ("Amount", "money"), ("Street", "street"), ("Age", "small"), ("Email", "email"), ("Postcode", "digits"),
    ),
    actions=_lines(
        "Save, Cancel, Open, Close, Delete, Print, Send, Next, Back, Help, Apply, Reset, Copy, Paste, Share, Play, OK"
    ),
    options=_lines("Dark mode, Autosave, Show grid, Remember me, Sounds, Large text, Backups, Spell check, Notifications"),
    measures=_lines("Sales, Visitors, Points, Rain, Price, Weight, Height, Orders, Speed, Profit"),
)  # fmt: skip

TEST = Lexicon(
    words=_words(
        "acorn almond amber arrow bacon badger bamboo barrel beacon blanket breeze cabin canyon carpet cherry chimney clover "
        "cradle cricket crystal daisy donkey ember falcon fiddle flame fossil garlic ginger glacier goblet gravel hazel "
        "helmet hollow ivory jasmine jigsaw kettle lantern lizard magnet marble mitten mustard napkin nutmeg oyster paddle "
        "pebble pigeon plum pumpkin puzzle quarry quilt radish saddle salmon sparrow stable sunset teapot thimble thunder "
        "trumpet tulip umber vessel walnut whistle willow zebra"
    ),
    products=_words(
        "Lentils Muffins Bagels Cereal Mangoes Peaches Spinach Walnuts Raisins Sponges Batteries Napkins Crackers "
        "Waffles"
    ),
    first_names=_words("Alma Bruno Clara Dario Elsa Fiona Gideon Hanna Ivan Jules Lotte Miguel Petra Ravi Tessa"),
    last_names=_words("Abbott Bishop Coleman Drake Foster Griffin Hayes Keller Lambert Mercer Quinn Sutton Walsh Yates"),
    places=_words("Athens Bergen Bogota Delhi Dakar Havana Krakow Lisbon Manila Naples Porto Riga Seoul Tunis Vienna"),
    shops=_lines("Harvest Hall, GRAND BAZAAR, Maple Grocer, Quick Buy, Union Co-op"),
    titles=_lines("Options, Upload, Log on, Profile, Calendar, Archive, Statistics"),
    fields=(
        ("Customer", "person"), ("Town", "place"), ("Mobile", "phone"), ("Issued on", "date"), ("Reference", "code"),
        ("Fee", "money"), ("Address", "street"), ("Seats", "small"), ("Contact", "email"), ("Member ID", "digits"),
    ),
    actions=_lines("Accept, Decline, Submit, Browse, Refresh, Undo, Rename, Finish, Skip, Retry, Attach, Record"),
    options=_lines("High contrast, Auto update, Show ruler, Stay offline, Vibration, Compact view, Reminders"),
    measures=_lines("Exports, Members, Goals, Hours, Costs, Energy, Distance, Tickets"),
)  # fmt: skip
