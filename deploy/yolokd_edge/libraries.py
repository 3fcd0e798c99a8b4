"""Imports numpy, OpenCV and ONNX Runtime before anything else does, and times that: it is part of a cold start."""

from __future__ import annotations

import sys
import time

COLD = not {"numpy", "cv2", "onnxruntime"} & set(sys.modules)  # else the time below says nothing
_START = time.perf_counter()

import cv2  # noqa: E402, F401
import numpy  # noqa: E402, F401
import onnxruntime  # noqa: E402, F401

IMPORT_S = time.perf_counter() - _START
