"""What every method declares. No behaviour beyond it: a method is a plain module that returns one scalar."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from yolokd.views import Spec, View

TAXONOMY_LEVELS = ("backbone", "neck", "roi", "head", "query", "feature", "logit")  # of the review arXiv:2508.03317
# Pairs "student/teacher" of heads, each dense (anchor points, which correspond) or a set (queries, which do not)
DENSE_HEADS = ("dense/dense",)
DENSE_TEACHER = ("dense/dense", "set/dense")
SET_HEADS = ("set/set",)
SET_TEACHER = ("set/set", "dense/set")
ANY_HEADS = ("dense/dense", "dense/set", "set/dense", "set/set")


class Method(nn.Module):
    """One paper's loss between a student's and a teacher's view.

    A subclass is built as ``Method(student_spec, teacher_spec, tap, options)`` and raises ``ValueError`` with one
    sentence when the pair cannot have it. ``forward`` returns one unweighted finite scalar, normalised so that a gain
    of 1 means the same on any image size, batch size and number of levels. Gains, schedules, logging are not its own.
    """

    # where the review's taxonomy (arXiv:2508.03317) puts it: CNN detectors' backbone, neck, roi or head, Transformer
    # detectors' query, feature or logit
    taxonomy_level: ClassVar[str]
    term: ClassVar[str]  # name in progress line and results.csv (followed by "_loss"), 2 to 5 letters
    paper: ClassVar[str]  # authors, title, year, arXiv number
    reported: ClassVar[str]  # the gain that was published for detection: detectors, figures and, in brackets, where
    # What a gain of 1 multiplies the value by, so that it means about the same for every method: 0.3 (0.2 to 0.41) of
    # the task's gradient on the neck (on the stages, for the backbone). Measured with balance=log on the first 20 steps
    # of a YOLO11 at width 0.125 that leaves another domain, under a YOLO11n, at 160 px and batch 16, while it learned
    # from its labels and the adapters from their terms. The value itself stays the equation's.
    unit: ClassVar[float] = 1.0
    taps: ClassVar[tuple[str, ...]] = ()  # maps of a view it can be put on, its default first; () for a head loss
    needs: frozenset[str] = frozenset()  # fields of the views it reads besides its tap, both sides; a pair may alter it
    student_needs: frozenset[str] = frozenset()  # fields of the student's view that it reads and not of the teacher's
    teacher_needs: frozenset[str] = frozenset()  # and the other way round
    heads: ClassVar[tuple[str, ...]] = ANY_HEADS  # pairs "student/teacher" of kinds of heads it can compare
    classwise: bool = False  # compares logits class by class, so both sides need the same; an option may alter it
    truth: ClassVar[bool] = False  # needs the batch's objects: images without ground truth teach nothing by it
    Options: ClassVar[type]  # frozen dataclass of its options; every field has a default

    def __init__(self, student: Spec, teacher: Spec, tap: str, options: Any) -> None:
        super().__init__()
        self.tap, self.options = tap, options

    def forward(self, student: View, teacher: View, batch: dict[str, Tensor]) -> Tensor:
        """Distance of the student's view to the teacher's; ``batch`` is Ultralytics' training batch."""
        raise NotImplementedError
