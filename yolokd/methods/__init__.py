"""The methods, by the name that recipes and the command line use. One paper a file; a test ties files and names."""

from __future__ import annotations

from yolokd.methods.base import Method
from yolokd.methods.bckd import BCKDBox, BCKDCls
from yolokd.methods.cwd import CWD
from yolokd.methods.fitnet import FitNet
from yolokd.methods.logit import Logit
from yolokd.methods.pkd import PKD
from yolokd.methods.sl2 import SL2

METHODS: dict[str, type[Method]] = {
    "fitnet": FitNet,
    "pkd": PKD,
    "cwd": CWD,
    "sl2": SL2,
    "logit": Logit,
    "bckd_cls": BCKDCls,
    "bckd_box": BCKDBox,
}
