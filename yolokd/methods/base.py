"""What every method declares. A method is otherwise a plain module that returns one scalar."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from yolokd.views import Spec, View

TAXONOMY_LEVELS = ("backbone", "neck", "roi", "head", "query", "feature", "logit")  # of the review arXiv:2508.03317
# Pairs "student/teacher" of heads. A head is dense (its anchor points correspond to another dense head's) or a set (its
# queries do not correspond to anything).
DENSE_HEADS = ("dense/dense",)
DENSE_TEACHER = ("dense/dense", "set/dense")
SET_HEADS = ("set/set",)
SET_TEACHER = ("set/set", "dense/set")
ANY_HEADS = ("dense/dense", "dense/set", "set/dense", "set/set")


class Method(nn.Module):
    """One paper's loss between a student's and a teacher's view.

    A subclass is built as ``Method(student_spec, teacher_spec, tap, options)`` and raises ``ValueError`` with one
    sentence when it cannot work on the pair. ``forward`` returns one unweighted finite scalar, normalised so that a
    gain of 1 means the same for any image size, batch size and number of levels. The distiller applies gains and
    schedules and writes the log. What a method calls ``adapters`` leads from the student's maps of its tap (crosskd's:
    of its towers) to the teacher's, one for each map; `yolokd.init.adapters` solves those that are 1x1 convolutions.
    """

    # level of the review's taxonomy (arXiv:2508.03317): backbone, neck, roi or head of CNN detectors, query, feature
    # or logit of Transformer detectors
    taxonomy_level: ClassVar[str]
    term: ClassVar[str]  # name in progress line and results.csv (followed by "_loss"), 2 to 5 letters
    paper: ClassVar[str]  # authors, title, year, arXiv number
    reported: ClassVar[str]  # the gain published for detection: detectors, figures and, in brackets, the source
    # A gain of 1 multiplies the value by this, so that it means about the same for every method: a gradient of 0.3 (0.2
    # to 0.41) times the task's on the neck (on the stages, for the backbone), as benchmarks/units.py measures it: over
    # the first 20 steps of a YOLO11 of width 0.125, started from another domain, under a YOLO11n, at 160 px and batch
    # 16, while it learns from its labels and the adapters from their terms. The figure behind a unit is that of the
    # value itself, which is the equation's; another day's seed moved it by a fifth, that of gid by more. The methods of
    # obb, pose and segment: the same student and teacher with such heads, the teacher after 40 steps. Those of RT-DETR
    # are rough: an untrained RT-DETR of 2 layers under one of 3 that had 60 steps and sees little yet.
    unit: ClassVar[float] = 1.0
    taps: ClassVar[tuple[str, ...]] = ()  # maps that it can be applied to, the default first; () for a loss on the head
    deepest: ClassVar[bool] = False  # compares the student's coarsest map only, whatever strides the teacher has
    needs: frozenset[str] = frozenset()  # fields that it reads besides its tap, of both views; may depend on the pair
    student_needs: frozenset[str] = frozenset()  # fields that it reads of the student's view only
    teacher_needs: frozenset[str] = frozenset()  # fields that it reads of the teacher's view only
    heads: ClassVar[tuple[str, ...]] = ANY_HEADS  # pairs "student/teacher" of kinds of heads it can compare
    classwise: bool = False  # compares logits class by class, so both need the same classes; an option may change it
    truth: ClassVar[bool] = False  # needs the batch's objects: it learns nothing from images without ground truth
    Options: ClassVar[type]  # frozen dataclass of its options; every field has a default

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: Any) -> None:
        super().__init__()
        self.tap, self.options = tap, options

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        """Distance of the student's view to the teacher's; ``batch`` is Ultralytics' training batch."""
        raise NotImplementedError
