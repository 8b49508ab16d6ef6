"""Where labels go beside their marks: plain geometry, in any unit that is about a point."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, bottom, right, top; as a line: x0, y0, x1, y1."""


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    radii: Sequence[float],
    inside: Box,
    blocked: Sequence[Box] = (),
) -> list[Box]:
    """A box of each size near its anchor: `inside`, off each other, off the marks (of `radii`), and off `blocked`.

    Off the last two as far as there is room; labels that lie on each other are the last resort.

    Candidates lie on growing rings around the anchor. Labels are placed one by one, most crowded first, then each is
    placed again, given all the others, until none wants to move: enough for a few dozen points, and always the same.
    """
    marks = [around(a, r) for a, r in zip(anchors, radii, strict=True)]
    obstacles = [(b, 30.0) for b in marks] + [(b, 4.0) for b in blocked]
    options = []
    for (ax, ay), (w, h), radius in zip(anchors, sizes, radii, strict=True):
        mine = []
        reach = (ax - w - 90, ay - h - 90, ax + w + 90, ay + h + 90)
        near = [(other, weight) for other, weight in obstacles if _overlap(reach, other)]
        for gap, angle in ((g, t) for g in (2, 6, 12, 20, 30, 43, 59, 80) for t in range(0, 360, 30)):
            cx = ax + math.cos(math.radians(angle)) * (gap + radius + w / 2)
            cy = ay + math.sin(math.radians(angle)) * (gap + radius + h / 2)
            box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
            if box[0] < inside[0] or box[1] < inside[1] or box[2] > inside[2] or box[3] > inside[3]:
                continue
            cost = 0.06 * gap + (0 if angle == 0 else 0.15 if angle == 180 else 0.3)
            cost += sum(weight * _overlap(box, other) / (w * h) * 4 for other, weight in near)
            mine.append((cost, box))
        options.append(mine or [(0.0, (ax - w / 2, ay - h / 2, ax + w / 2, ay + h / 2))])
    crowd = [sum(math.dist(a, b) < 60 for b in anchors) for a in anchors]
    order = sorted(range(len(anchors)), key=lambda i: (-crowd[i], i))
    placed: dict[int, Box] = {}
    for _ in range(8):
        before = dict(placed)
        for i in order:
            others = [(placed[j], leader(anchors[j], placed[j])) for j in placed if j != i]
            placed[i] = min(options[i], key=lambda o: o[0] + _clash(anchors[i], o[1], others))[1]
        if placed == before:
            break
    return [placed[i] for i in range(len(anchors))]


def _clash(anchor: tuple[float, float], box: Box, others: Sequence[tuple[Box, Box | None]]) -> float:
    mine = leader(anchor, box)
    cost = 0.0
    for other, theirs in others:
        if _overlap((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), other):
            cost += 100
        cost += 12 * bool(mine and _cuts(mine, other)) + 12 * bool(theirs and _cuts(theirs, box))
        cost += 6 * bool(mine and theirs and _cross(mine, theirs))
    return cost


def leader(anchor: tuple[float, float], box: Box) -> Box | None:
    """The line from a mark to the nearest spot of its label, or None where they sit close enough to need none."""
    x, y = min(max(anchor[0], box[0]), box[2]), min(max(anchor[1], box[1]), box[3])
    return (anchor[0], anchor[1], x, y) if math.dist(anchor, (x, y)) > 12 else None


def _cross(a: Box, b: Box) -> bool:
    def side(line: Box, x: float, y: float) -> float:
        return (line[2] - line[0]) * (y - line[1]) - (line[3] - line[1]) * (x - line[0])

    return side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0 and side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0


def _cuts(line: Box, box: Box) -> bool:
    return _cross(line, (box[0], box[1], box[2], box[3])) or _cross(line, (box[0], box[3], box[2], box[1]))


def _overlap(a: Box, b: Box) -> float:
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0.0
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))


def around(centre: Sequence[float], radius: float) -> Box:
    return (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
