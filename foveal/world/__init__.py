"""Generated pictures and clips with exact ground truth, for training and for measuring."""

from foveal.world.cases import CASE_KINDS, CASE_QUESTIONS, CLIP_CASES, Case, full_name, make
from foveal.world.clips import save_clip
from foveal.world.difficulty import (
    CLIP_KINDS,
    COLOUR_CLASSES,
    EASY,
    KIND_CLASSES,
    PICTURE_KINDS,
    QUESTION_KINDS,
    WORDS,
    Difficulty,
)
from foveal.world.items import Item, clip_item, picture_item
from foveal.world.labels import CellLabels, cell_labels
from foveal.world.questions import Question
from foveal.world.score import list_f1, score, yes_no_f1
from foveal.world.stamps import CHAR_CLASSES

__all__ = [
    "CASE_KINDS",
    "CASE_QUESTIONS",
    "CHAR_CLASSES",
    "CLIP_CASES",
    "CLIP_KINDS",
    "COLOUR_CLASSES",
    "EASY",
    "KIND_CLASSES",
    "PICTURE_KINDS",
    "QUESTION_KINDS",
    "WORDS",
    "Case",
    "CellLabels",
    "Difficulty",
    "Item",
    "Question",
    "cell_labels",
    "clip_item",
    "full_name",
    "list_f1",
    "make",
    "picture_item",
    "save_clip",
    "score",
    "yes_no_f1",
]
