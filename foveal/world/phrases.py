"""The ways each question is put. {a} and {b} are names of things, {c} a colour, {n} "number" or "word", {s} a plural."""

from __future__ import annotations

import numpy as np

_PHRASES: dict[str, tuple[str, ...]] = {
    "colour": (
        "What colour is the {a}?",
        "Which colour does the {a} have?",
        "What is the colour of the {a}?",
        "Name the colour of the {a}.",
    ),
    "shape": (
        "What shape is the {c} thing?",
        "Which shape is {c}?",
        "What is the {c} shape?",
        "Name the shape of the {c} object.",
    ),
    "icon": ("What is the {c} icon?", "Which icon is {c}?", "What does the {c} icon show?"),
    "only icon": ("Which icon is shown?", "What does the icon show?", "Name the icon in the picture."),
    "count": (
        "How many {s} are there?",
        "Count the {s}.",
        "How many {s} do you see?",
        "How many {s} are in the picture?",
    ),
    "box": (
        "Locate the {a} and output its bbox in JSON.",
        "Where is the {a}? Answer with a bbox in JSON.",
        "Find the {a} and give its bounding box in JSON.",
        "Output the bbox of the {a} in JSON.",
    ),
    "beside": (
        "Is the {a} left or right of the {b}?",
        "Is the {a} to the left or right of the {b}?",
        "On which side of the {b} is the {a}, left or right?",
    ),
    "above": (
        "Is the {a} above or below the {b}?",
        "Which is true: the {a} is above or below the {b}?",
        "Where is the {a}, above or below the {b}?",
    ),
    "read": ("What is the {c} {n}?", "Which {n} is {c}?", "Read the {c} {n}."),
    "read only": (
        "What {n} is written?",
        "Which {n} is shown?",
        "Read the {n}.",
        "What {n} do you see?",
        "What is the {c} {n}?",
    ),
    "describe": (
        "Describe the picture.",
        "List everything in the picture.",
        "What is in the picture?",
        "Name all objects in the picture.",
    ),
    "appear_time": (
        "At what second does the {a} appear?",
        "When does the {a} appear?",
        "At what time does the {a} show up?",
        "When is the {a} first seen?",
    ),
    "vanish_time": (
        "At what second does the {a} vanish?",
        "When does the {a} disappear?",
        "At what time does the {a} vanish?",
    ),
    "first": ("What appears first?", "Which thing is seen first?", "What is the first thing to appear?"),
    "first of two": (
        "Which appears first, the {a} or the {b}?",
        "What appears first: the {a} or the {b}?",
        "Does the {a} or the {b} appear first?",
    ),
    "moves": (
        "In which direction does the {a} move?",
        "Which way does the {a} move?",
        "Does the {a} move left, right, up or down?",
    ),
    "clip_count": (
        "How many things appear in the clip?",
        "How many objects are seen in the whole clip?",
        "Count the objects in the clip.",
    ),
    "timeline": ("Describe the clip.", "List what appears and when.", "What happens in the clip?"),
    "receipt_total": ("What is the total?", "How much was paid in total?", "What total does the receipt show?"),
    "receipt_price": ("How much was paid for {a}?", "What is the price of {a}?", "What does the line {a} come to?"),
    "receipt_shop": ("What is the name of the shop?", "Which shop is the receipt from?"),
    "receipt_date": ("What is the date?", "When was the receipt printed?"),
    "receipt_quantity": ("What quantity of {a} was bought?", "How many units of {a} were bought?"),
    "form_value": ("What is filled in under {a}?", "What is the {a}?", "Read the {a}."),
    "ticked": ('Is "{a}" ticked?', 'Is the box "{a}" ticked?'),
    "table_cell": ("What is the value of {b} for {a}?", "What number does {a} have under {b}?", "Read {b} of {a}."),
    "table_extreme": ("Which row has the {a} {b}?", "In which row is {b} {a}?"),
    "table_name": ("What is the heading of the {a} column of numbers?", "Read the {a} heading above the numbers."),
    "paragraph_title": ("What is the title?", "Read the title.", "What is written above the text?"),
    "paragraph_after": ('Which word comes after "{a}"?', 'What is the word after "{a}"?'),
    "paragraph_line": ("Read the {a} line of the text.", "What does the {a} line below the title say?"),
    "paragraph_marked": ("Which word is {c}?", "Read the {c} word."),
    "chart_value": ("What is the value of {a}?", "How high is {a}?", "Read the value of {a}."),
    "chart_extreme": ("Which has the {a} value?", "What has the {a} value?"),
    "chart_difference": ("By how much do {a} and {b} differ?", "What is the difference between {a} and {b}?"),
    "chart_above": ("How many values are above {a}?", "Count the values above {a}."),
    "screen_find": (
        'Locate the button "{a}" and output its bbox in JSON.',
        "Where should one click to {b}? Answer with a bbox in JSON.",
    ),
    "screen_value": ('What is written in the field "{a}"?', 'What does the field "{a}" hold?'),
    "screen_beside": ('Which button is to the right of "{a}"?', 'What does the button right of "{a}" say?'),
    "screen_below": ('Which button is below "{a}"?', 'What does the button below "{a}" say?'),
    "screen_title": ("What is the title of the window?", "Read the title of the window."),
    "needle_code": ("What is the code of {a}?", "Which code belongs to {a}?", 'Read the code of "{a}".'),
    "needle_key": ("Whose code is {a}?", "Which word has the code {a}?"),
    "emoji_name": ("What is the {c} emoji?", "Which emoji is {c}?", "Name the {c} emoji."),
    "emoji_only": ("Which emoji is this?", "What does the emoji show?", "Name the emoji."),
    "emoji_colour": ("What colour is the {a}?", "Which colour does the {a} have?"),
    "emoji_find": ("Locate the {a} and output its bbox in JSON.", "Where is the {a}? Answer with a bbox in JSON."),
    "absent_one": ("Is there any {a} in the picture?", "Does the picture show any {a}?", "Do you see any {a}?"),
    "absent_list": (
        "Which of these are not in the picture: {a}?",
        "Name those that the picture does not show: {a}.",
        "Of {a}, which are missing in the picture?",
    ),
    "far_number": (
        "Which number is larger, the one in the {a} or the one in the {b} corner?",
        "Read the numbers in the {a} and the {b} corner. Which is larger?",
    ),
    "far_same": (
        "Are the things in the {a} and the {b} corner of the same kind?",
        "Do the {a} and the {b} corner show the same kind of thing?",
    ),
    "far_colour": (
        "Are the things in the {a} and the {b} corner of the same colour?",
        "Is the colour in the {a} corner the same as in the {b} corner?",
    ),
    "pictures_which": (
        "In which picture is the {a}? Answer with its number.",
        "What is the number of the picture with the {a}?",
    ),
    "pictures_count": ("How many {s} are there in all pictures together?", "Count the {s} of all pictures."),
    "pictures_changed": (
        "Which thing has another colour in picture 2 than in picture 1?",
        "One thing changed its colour between the two pictures. Which?",
    ),
    "pictures_colour": ("Which colour does the {a} have in picture 2?", "What colour is the {a} in the second picture?"),
    "turns_first": ("What is the {c} thing?", "Which thing is {c}?"),
    "turns_find": ("And where is it? Answer with a bbox in JSON.", "Output its bbox in JSON."),
    "turns_nearest": ("Which thing is nearest to it? Name its colour and kind.", "And what is nearest to it? Colour and kind."),
    "turns_others": ("How many other things are there?", "And how many things are there beside it?"),
    "reasoned_count": ("How many {s} are there? List them first.", "List the {s}, then say how many there are."),
    "order_list": (
        "List the things in the order in which they appear.",
        "In which order do the things appear? Name all.",
    ),
    "order_last": ("What appears last?", "Which thing is the last to appear?"),
    "glimpse_code": ("Which code is shown for a moment?", "A code is shown briefly. What is it?", "Read the code in the clip."),
    "glimpse_time": ("At what second is the code shown?", "When does the code appear?"),
}


def say(rng: np.random.Generator, key: str, **names: str) -> str:
    """Put a question in one of its ways."""
    forms = _PHRASES[key]
    return forms[int(rng.integers(len(forms)))].format(**names)


def plural(kind: str) -> str:
    """Write the plural of a kind's name."""
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")
