"""The methods, by the name that recipes and the command line use. One file per paper; a test checks files and names.

Imitation of the head's towers (the review's feature imitation at head level) needs no file of its own: it is a map
method on the tap "towers", such as `pkd@towers`.
"""

from __future__ import annotations

from yolokd.methods.at import AT
from yolokd.methods.base import Method
from yolokd.methods.bckd import BCKDBox, BCKDCls
from yolokd.methods.bounded import Bounded
from yolokd.methods.clock import CLoCK, CLoCKMemory
from yolokd.methods.crosskd import CrossKD
from yolokd.methods.cwd import CWD
from yolokd.methods.d3etr import D3ETR
from yolokd.methods.defeat import DeFeat
from yolokd.methods.detrdistill import DETRFeat, DETRLogit, DETRQuery
from yolokd.methods.dist import DIST
from yolokd.methods.dsi import DSI
from yolokd.methods.fbkd import FBKD
from yolokd.methods.fgd import FGD
from yolokd.methods.fgfi import FGFI
from yolokd.methods.fitnet import FitNet
from yolokd.methods.frs import FRS, FRSCls
from yolokd.methods.gid import GID
from yolokd.methods.icd import ICD
from yolokd.methods.kddetr import KDDETR
from yolokd.methods.lad import LAD
from yolokd.methods.ld import LD, RotatedLD
from yolokd.methods.logit import Logit
from yolokd.methods.masks import Masks
from yolokd.methods.match import Match
from yolokd.methods.mgd import MGD
from yolokd.methods.oks import OKS
from yolokd.methods.pgd import PGD
from yolokd.methods.pkd import PKD
from yolokd.methods.probiou import ProbIoU
from yolokd.methods.qskd import QSKD
from yolokd.methods.rank import PFI, RankMimicking
from yolokd.methods.reviewkd import ReviewKD
from yolokd.methods.roi import RoI
from yolokd.methods.rpn import RPN
from yolokd.methods.sl2 import SL2

METHODS: dict[str, type[Method]] = {
    "fitnet": FitNet,
    "at": AT,
    "dsi": DSI,
    "pkd": PKD,
    "cwd": CWD,
    "sl2": SL2,
    "mgd": MGD,
    "fgd": FGD,
    "defeat": DeFeat,
    "fbkd": FBKD,
    "reviewkd": ReviewKD,
    "fgfi": FGFI,
    "icd": ICD,
    "frs": FRS,
    "pgd": PGD,
    "logit": Logit,
    "bckd_cls": BCKDCls,
    "bckd_box": BCKDBox,
    "ld": LD,
    "ld_rotated": RotatedLD,
    "lad": LAD,
    "bounded": Bounded,
    "dist": DIST,
    "crosskd": CrossKD,
    "rm": RankMimicking,
    "pfi": PFI,
    "frs_cls": FRSCls,
    "roi": RoI,
    "gid": GID,
    "rpn": RPN,
    "probiou": ProbIoU,
    "oks": OKS,
    "masks": Masks,
    "detr_query": DETRQuery,
    "kd_detr": KDDETR,
    "clock": CLoCK,
    "detr_feat": DETRFeat,
    "clock_mem": CLoCKMemory,
    "detr_logit": DETRLogit,
    "d3etr": D3ETR,
    "qskd": QSKD,
    "match": Match,
}
