"""`yolokd train`: train a student under a teacher."""

from __future__ import annotations

import shlex

from yolokd.verbs.declaration import Option, Verb

TEACHERS, STUDENT, CACHE, FILES = "Teachers", "Another student", "Stored answers", "Data and files"
PAIR = (
    Option("model", "the student: a .pt file, or a YAML for a new network", required=True),
    Option("teacher", "the teacher, or several with commas between; ema: the student's moving average", required=True),
    Option("data", "the data set's YAML, as for `yolo train`", required=True),
)
REPORT = Option("report", "False: leave no report.html in the end", "True", group=FILES)
SIZE = (
    Option(
        "width", "with model=FAMILY.yaml: a student smaller than the family's smallest", "the YAML's", group=STUDENT
    ),
    Option(
        "depth", "with model=FAMILY.yaml: a student smaller than the family's smallest", "the YAML's", group=STUDENT
    ),
)
CFG = Option("cfg", "a file of arguments, or voc or coco", "none", group=FILES)
DISTILLATION = (
    Option("kd", "overall gain of all terms; kd=0 is the student alone, bit for bit", "1.0"),
    Option("init", "where the student starts: own, head, neck, teacher or auto", "auto (own with kd=0)"),
    Option("init.channels", "of a start from the teacher: solved, copied or random, to compare with", "solved"),
    Option("balance", "auto, a share such as 0.5, or log", "off"),
    Option("fade", "False: keep the terms' weight when the student catches up with its teacher", "True"),
    Option(
        "cache",
        "with cache=teacher: store the teacher's answers so that later epochs do without it",
        "off",
        group=CACHE,
    ),
    Option("quantize", "8: train the student for INT8", "full precision", group=STUDENT),
    Option("cache_views", "augmented views of each image with cache=teacher", "5", group=CACHE),
    Option("cache_limit", "largest size of the stored answers, in GB", "10", group=CACHE),
    *SIZE,
    CFG,
    Option(
        "classes", "a YAML file that says which class of the teacher is which of the data", "by name", group=TEACHERS
    ),
    Option("levels", "common or resize", "common", group=TEACHERS),
    Option("teacher_imgsz", "image size for the teacher, 32 or more", "the student's", group=TEACHERS),
    Option("teachers", "average or best, of several teachers", "average", group=TEACHERS),
    Option("teacher.contract", "about an ONNX teacher", "its metadata", group=TEACHERS),
    Option("teacher.names", "about an ONNX teacher", "its metadata", group=TEACHERS),
    Option("unlabeled", "a folder of images without labels", "none", group=FILES),
    Option(
        "trust",
        "True: open files that may run code, such as a checkpoint's pickle or a data set's download script",
        "False",
        group=FILES,
    ),
    Option("unlabeled_ratio", "unlabelled images for each labelled one", "1", group=FILES),
)
DOTTED = Option("NAME.option", "an option of a method, such as cwd.tau=2 or pkd@backbone.gain=0.5", "the method's")
TRAINING = (
    *PAIR,
    Option(
        "method",
        "which methods: a comma list (pkd,bckd_cls), at a tap if wanted (pkd@backbone), or a recipe file",
        "default, a recipe that comes with yolokd",
    ),
    DOTTED,
    *DISTILLATION,
)

VERB = Verb(
    summary="trains a student under a teacher",
    usage=(
        "yolokd train model=yolo11n.pt teacher=big.pt data=my.yaml [method=pkd,logit] [cwd.tau=2] [epochs=100] ...",
    ),
    options=(
        *TRAINING,
        Option("check", "False: start without looking at data and scores first", "True", group=FILES),
        REPORT,
    ),
    notes=(
        "Everything that `yolo train` takes is passed on to Ultralytics untouched.",
        "`yolokd methods` lists the methods, and `yolokd methods NAME` the options of one.",
    ),
    examples=(
        "yolokd train model=yolo11n.pt teacher=big.pt data=my.yaml epochs=100 imgsz=640",
        "yolokd train model=yolo11n.yaml width=0.125 depth=0.5 teacher=big.pt data=my.yaml method=logit,pkd",
        "yolokd train resume=runs/detect/train",
    ),
    passes_on=True,
    stands_on_ultralytics=True,
)


def run(words: list[str]) -> None:
    """Train; the report lies in the run's folder in the end."""
    from yolokd.config.parse import parse_pairs
    from yolokd.reports.trained import trained

    given = parse_pairs(words)
    report = given.pop("report", True)
    trained(given, report, shlex.join(["yolokd", "train", *words]))
