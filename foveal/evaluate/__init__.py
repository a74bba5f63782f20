"""The examination: the same questions to every arm, every answer kept, every difference with its interval.

Tasks are kinds of the generated world or files of one's own; arms are models that foveal loads, with their settings, or servers
of the OpenAI API. `foveal eval` runs it.
"""

from foveal.evaluate.arms import Answerer, Arm, Local, Said, answered
from foveal.evaluate.items import Evidence, Item
from foveal.evaluate.report import make_report
from foveal.evaluate.run import Run, examine
from foveal.evaluate.tasks import Task, open_tasks

__all__ = [
    "Answerer", "Arm", "Evidence", "Item", "Local", "Run", "Said", "Task", "answered", "examine", "make_report", "open_tasks",
]  # fmt: skip
