"""The demo's scenes with labels for other tasks: polygons, keypoints and rotated boxes.

    python benchmarks/task_scenes.py out=scenes train=1000 val=600

writes scenes/segment.yaml, pose.yaml and obb.yaml, each with folders of its own; the images are the same. A product's
polygon is the outline of what is visible of it, its rotated box that of its crop's visible part, and its four
keypoints are the middles of its crop's sides, so that they turn with the product.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from yolokd.config.parse import parse_pairs
from yolokd.demo import scenes

POINTS = np.array([(13.5, 2.0), (25.0, 13.5), (13.5, 25.0), (2.0, 13.5)])  # in a crop of 28 x 28
TASKS: dict[str, dict[str, Any]] = {"segment": {}, "pose": {"kpt_shape": [4, 3], "flip_idx": [0, 3, 2, 1]}, "obb": {}}


def main(out: str, train: int = 1000, val: int = 600, imgsz: int = 160, seed: int = 0) -> None:
    """Write the three data sets."""
    root, pools = Path(out), scenes.split(scenes.read_sprites())
    scenes.check_arguments(root, train, val, imgsz, seed)
    for salt, (split, count) in enumerate({"train": train, "val": val}.items(), start=11):
        for task in TASKS:
            for kind in ("images", "labels"):
                (root / task / kind / split).mkdir(parents=True)
        for i in range(count):
            image, lines = scene(np.random.default_rng([seed, salt, i]), pools[split], imgsz)
            first = root / "segment/images" / split / f"{i:05d}.jpg"
            cv2.imwrite(str(first), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            for task in TASKS:
                if task != "segment":
                    os.link(first, root / task / "images" / split / first.name)
                (root / task / "labels" / split / f"{i:05d}.txt").write_text("".join(lines[task]), encoding="utf-8")
    for task, more in TASKS.items():
        data = {"path": str((root / task).resolve()), "train": "images/train", "val": "images/val", **more}
        data["names"] = dict(enumerate(scenes.CLASSES))
        (root / f"{task}.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def scene(rng: np.random.Generator, pool: Any, size: int) -> tuple[Any, dict[str, list[str]]]:
    """One scene, and its label lines by task."""
    image, lines, taken = scenes.background(rng, size), {task: [] for task in TASKS}, []
    scenes.add_fragments(rng, image, pool)
    for _ in range(rng.integers(2, 11)):
        if (place := scenes.find_place(rng, taken, size)) is None:
            continue
        scale, centre, square = place
        cls, crop = scenes.draw(rng, pool)
        angle = rng.uniform(-90, 90)
        box = scenes.paste(rng, image, crop, scale, centre, angle, rng.uniform(0.8, 1.0))
        if box is None or min(box[2] - box[0], box[3] - box[1]) < scenes.MIN_SIDE:
            continue
        taken.append(square)
        for task, values in labels(crop, scale, centre, angle, box, size).items():
            lines[task].append(f"{cls} " + " ".join(f"{v:.6f}" for v in values) + "\n")
    noisy = image + rng.normal(0, rng.uniform(2, 12), image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), lines


def labels(crop: Any, scale: float, centre: Any, angle: float, box: Any, size: int) -> dict[str, list[float]]:
    """A product's numbers by task, as shares of the image."""
    middle = (scenes.SIDE - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, scale)
    matrix[:, 2] += centre - middle
    mask = (scenes.warp((crop > 12).astype(np.float32), matrix, size) > 0.4).astype(np.uint8)
    outlines = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    outline = max(outlines, key=cv2.contourArea).reshape(-1, 2).astype(np.float64) + 0.5
    corners = cv2.boxPoints(cv2.minAreaRect(np.concatenate(outlines).reshape(-1, 2).astype(np.float32) + 0.5))
    points = POINTS @ matrix[:, :2].T + matrix[:, 2] + 0.5
    inside = ((points >= 0) & (points < size)).all(1)
    x1, y1, x2, y2 = box
    upright = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / size
    keypoints = np.column_stack((points / size * inside[:, None], 2.0 * inside))
    if len(outline) < 3:
        outline = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], float)
    return {
        "segment": (outline / size).clip(0, 1).ravel().tolist(),
        "pose": [*upright.tolist(), *keypoints.ravel().tolist()],
        "obb": (np.asarray(corners, float) / size).clip(0, 1).ravel().tolist(),
    }


if __name__ == "__main__":
    main(**parse_pairs(sys.argv[1:]))
