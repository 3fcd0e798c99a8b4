"""Does DeepStream find the boxes that were found where the bundle was made? Standard library only.

Run from within the bundle's folder deepstream/, after `deepstream-app -c app.txt`:

    python3 check.py [folder of what it wrote, found by default]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

OVERLAP, CONFIDENCE, SHARE = 0.8, 0.1, 0.9  # of a pair of boxes that agree, and of the boxes that must
BORDERLINE = 0.05  # a box whose score is so close to the threshold may be missing
USAGE, PARITY = 2, 5  # exit codes


def read_kitti(text: str) -> List[Dict[str, Any]]:
    """Boxes of a file that deepstream-app wrote: label, then fifteen numbers with the corners and the score."""
    found = []
    for line in text.splitlines():
        label, *numbers = line.rsplit(None, 15)
        values = [float(number) for number in numbers]
        found.append({"label": label, "box": values[3:7], "conf": values[14]})
    return found


def overlap(a: List[float], b: List[float]) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0


def partner(box: Dict[str, Any], others: List[Dict[str, Any]]) -> bool:
    """Whether a box has one like it."""
    return any(
        box["label"] == other["label"]
        and abs(box["conf"] - other["conf"]) <= CONFIDENCE
        and overlap(box["box"], other["box"]) >= OVERLAP
        for other in others
    )


def main(folder: Path) -> int:
    """Compare, say how it went, and give the exit code."""
    expected = json.loads(Path("expected.json").read_text(encoding="utf-8"))
    agreed = number = 0
    for source, name in enumerate(sorted(expected)):
        written = sorted(folder.glob("*_{:03d}_*.txt".format(source)))  # number of the app, the source, the frame
        if not written:
            print("There is no text of source {} in {}: run deepstream-app -c app.txt first.".format(source, folder))
            return USAGE
        try:
            found = read_kitti(written[0].read_text(encoding="utf-8"))
        except (ValueError, IndexError):
            print("{} is not what deepstream-app writes for KITTI: a label and fifteen numbers.".format(written[0]))
            return USAGE
        sure = min((box["conf"] for box in expected[name]), default=1.0) + BORDERLINE
        pairs = [(box, found) for box in expected[name] if box["conf"] > sure]
        pairs += [(box, expected[name]) for box in found if box["conf"] > sure]
        here = sum(partner(box, others) for box, others in pairs)
        print("{}: {} of {} boxes agree".format(name, here, len(pairs)))
        agreed, number = agreed + here, number + len(pairs)
    if not number:
        print("No box to compare: DeepStream found none and none was expected with a sure score.")
        return PARITY
    print("{} of {} boxes agree ({:.0f} %)".format(agreed, number, 100.0 * agreed / number))
    return 0 if agreed >= SHARE * number else PARITY


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "found")))
