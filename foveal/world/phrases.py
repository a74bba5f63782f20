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
}


def say(rng: np.random.Generator, key: str, **names: str) -> str:
    """Put a question in one of its ways."""
    forms = _PHRASES[key]
    return forms[int(rng.integers(len(forms)))].format(**names)


def plural(kind: str) -> str:
    """Write the plural of a kind's name."""
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")
