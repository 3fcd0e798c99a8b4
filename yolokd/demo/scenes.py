"""Compose the demo's data: cluttered scenes of fashion products, in YOLO format, from the bundled 28 x 28 crops.

A scene is coloured noise with 2 to 10 products on it, varied in scale, rotation, tint, contrast and opacity, among
unlabelled fragments of other products. The bundled teacher was trained on such scenes: if their look changes, its
score drops.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.float32]  # (S, S, 3), BGR in [0, 255] and beyond: clipped only when the scene is complete
Crops = NDArray[np.uint8]  # (..., 28, 28), a bright product on black
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, x2 and y2 exclusive

SPRITES = Path(__file__).parent / "assets" / "fashion-sprites.png"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
SIDE = 28  # pixels of a crop
TRAIN_CROPS = 200  # a class's first crops are for training scenes, its others for validation scenes
REFERENCE = 160  # image size for which the scale ranges below are given; they grow with the image
MIN_SIDE = 5  # pixels; a product that the image's border cuts narrower than this is not labelled


def compose(out: Path, train: int = 400, val: int = 200, imgsz: int = 160, seed: int = 0) -> Path:
    """Write ``train`` and ``val`` scenes of ``imgsz`` pixels under ``out`` and return the data YAML's path.

    The same arguments give the same bytes, and a smaller set is the beginning of a larger one.
    """
    check_arguments(out, train, val, imgsz, seed)
    pools = split(read_sprites())
    for salt, (name, count) in enumerate({"train": train, "val": val}.items(), start=1):
        images, labels = out / "images" / name, out / "labels" / name
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            image, objects = scene(np.random.default_rng([seed, salt, i]), pools[name], imgsz)
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (images / f"{i:05d}.jpg").write_bytes(jpeg.tobytes())
            text = "".join(label(cls, box, imgsz) for cls, box in objects)
            (labels / f"{i:05d}.txt").write_text(text, encoding="utf-8", newline="\n")
    return write_yaml(out)


def check_arguments(out: Path, train: int, val: int, imgsz: int, seed: int) -> None:
    """Refuse arguments that would overwrite a user's files or give a data set that cannot be trained on."""
    if min(train, val) < 1:
        raise ValueError(f"train={train} val={val}: a data set needs scenes in both splits; set each to 1 or more.")
    if imgsz < 32:
        raise ValueError(f"imgsz={imgsz} is too small to show a product; set it to 32 or more.")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; set it to 0 or more.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"'{out}' exists and is not an empty folder; delete it or name another folder.")


def write_yaml(out: Path) -> Path:
    """Write the data YAML with an absolute root, so that ``yolo`` finds the scenes from any working directory."""
    path = out / "scenes.yaml"
    data = {
        "path": str(out.resolve()),
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(CLASSES)),
    }
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8", newline="\n")
    return path


def read_sprites() -> Crops:
    """Read the bundled sheet of one row per class as (10 classes, 250, 28, 28)."""
    sheet = cv2.imdecode(np.frombuffer(SPRITES.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    rows = np.asarray(sheet, np.uint8).reshape(len(CLASSES), SIDE, -1, SIDE)
    return np.ascontiguousarray(rows.swapaxes(1, 2))


def split(sprites: Crops) -> dict[str, Crops]:
    """Divide (K, n, 28, 28) by product, so that no product is in both training and validation."""
    return {"train": sprites[:, :TRAIN_CROPS], "val": sprites[:, TRAIN_CROPS:]}


def label(cls: int, box: Box, size: int) -> str:
    """One line of a YOLO label file: class, centre, width and height, as shares of the image."""
    x1, y1, x2, y2 = (side / size for side in box)
    return f"{cls} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"


def scene(rng: Generator, pool: Crops, size: int) -> tuple[NDArray[np.uint8], list[tuple[int, Box]]]:
    """Compose one (size, size, 3) image from crops (K, n, 28, 28); return it with a class and a box per product."""
    image = background(rng, size)
    add_fragments(rng, image, pool)
    objects = add_products(rng, image, pool)
    if rng.random() < 0.4:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.0)), np.float32)
    noisy = image + rng.normal(0, rng.uniform(2, 12), image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), objects


def background(rng: Generator, size: int) -> Image:
    """Colour noise of five octaves with a lighting gradient, (size, size, 3)."""
    image = np.zeros((size, size, 3), np.float32)
    for octave in (4, 8, 16, 32, 80):
        noise = rng.normal(0, 1, (octave, octave, 3)).astype(np.float32)
        noise = 0.5 * noise + 0.5 * noise.mean(2, keepdims=True)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) / octave**0.45
    image = image / (image.std() + 1e-6) * rng.uniform(18, 45) + rng.uniform(70, 180, 3).astype(np.float32)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    light = x * rng.uniform(-60, 60) + y * rng.uniform(-60, 60)
    return np.asarray(image + light[..., None], np.float32)


def add_fragments(rng: Generator, image: Image, pool: Crops) -> None:
    """Paste 2 to 6 unlabelled pieces of products, so that texture alone does not identify an object."""
    size = len(image)
    for _ in range(rng.integers(2, 7)):
        _, crop = draw(rng, pool)
        y, x = rng.integers(4, 14, 2)
        piece = np.zeros_like(crop)
        piece[y : y + 9, x : x + 9] = crop[y : y + 9, x : x + 9]
        scale = rng.uniform(0.8, 2.2) * size / REFERENCE
        paste(rng, image, piece, scale, rng.uniform(0, size, 2), rng.uniform(0, 360), opacity=0.9)


def add_products(rng: Generator, image: Image, pool: Crops) -> list[tuple[int, Box]]:
    """Paste 2 to 10 products, fewer if there is no room left, and return the class and box of each."""
    objects: list[tuple[int, Box]] = []
    taken: list[Box] = []
    for _ in range(rng.integers(2, 11)):
        place = find_place(rng, taken, len(image))
        if place is None:
            continue
        scale, centre, square = place
        cls, crop = draw(rng, pool)
        box = paste(rng, image, crop, scale, centre, rng.uniform(-25, 25), rng.uniform(0.8, 1.0))
        if box is not None and min(box[2] - box[0], box[3] - box[1]) >= MIN_SIDE:
            objects.append((cls, box))
            taken.append(square)
    return objects


def find_place(rng: Generator, taken: list[Box], size: int) -> tuple[float, NDArray[np.float64], Box] | None:
    """Draw a scale, a centre (2,) and their square, which hardly overlaps any of ``taken``; None after 12 tries."""
    for _ in range(12):
        scale = float(np.exp(rng.uniform(np.log(0.55), np.log(2.6)))) * size / REFERENCE
        centre = rng.uniform(0.06 * size, 0.94 * size, 2)
        (x, y), half = centre.tolist(), SIDE / 2 * scale
        square = (x - half, y - half, x + half, y + half)
        if all(overlap(square, other) < 0.15 for other in taken):
            return scale, centre, square
    return None


def draw(rng: Generator, pool: Crops) -> tuple[int, Crops]:
    """Draw a class and one of its crops (28, 28) from (K, n, 28, 28), each crop as likely as any other."""
    cls, i = divmod(int(rng.integers(pool.shape[0] * pool.shape[1])), pool.shape[1])
    return cls, pool[cls, i]


def paste(
    rng: Generator,
    image: Image,
    crop: Crops,
    scale: float,
    centre: NDArray[np.float64],
    angle: float,
    opacity: float,
) -> Box | None:
    """Blend one crop (28, 28) into the image in place; return the box of its visible part, None if that is tiny.

    ``scale`` is image pixels per crop pixel, ``angle`` in degrees.
    """
    middle = (SIDE - 1) / 2
    matrix = np.asarray(cv2.getRotationMatrix2D((middle, middle), angle, scale), np.float64)
    matrix[:, 2] += centre - middle
    grey = warp(crop.astype(np.float32), matrix, len(image))
    # 12: the darkest grey that belongs to a product; 1.4 sharpens the edge that interpolation made soft
    mask = np.clip(warp((crop > 12).astype(np.float32), matrix, len(image)) * 1.4, 0, 1) * opacity
    visible = mask > 0.4
    if visible.sum() < 20:
        return None
    tint, shade = rng.uniform(0.45, 1.0, 3).astype(np.float32), rng.uniform(-25, 40)
    if rng.random() < 0.35:  # a dark product with light seams
        grey = 255 - grey
    x1, y1, x2, y2 = extent(mask > 0)  # blending only there takes half the time of blending everywhere
    part, weight = image[y1:y2, x1:x2], mask[y1:y2, x1:x2, None]
    colour = grey[y1:y2, x1:x2, None] * tint * rng.uniform(0.55, 1.0) + shade
    part[:] = part * (1 - weight) + colour * weight
    return extent(visible)


def extent(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box around the true cells of (S, S), of which there must be at least one."""
    y, x = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def warp(crop: Image, matrix: NDArray[np.float64], size: int) -> Image:
    """Draw a crop (28, 28) with an affine map (2, 3) on a black canvas (size, size)."""
    return np.asarray(cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LINEAR), np.float32)


def overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes divided by the smaller one's area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
