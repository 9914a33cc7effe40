"""Score by length, a picture for each row, with its 95 % interval as a band."""

from __future__ import annotations

from markupsafe import Markup

from harpe.report.figures.panels import Frame, Point, panel
from harpe.report.figures.plot import linear
from harpe.report.read.lengths import LengthTask, MethodLengths
from harpe.report.read.run import Row, Run
from harpe.report.wording import percent


def length_panels(run: Run, task: LengthTask) -> list[tuple[Row, Markup | None]]:
    """Each row's score by length, with the reference's as a thin line, and what an effective length keeps as a level;
    empty where one length was asked."""
    scores = run.summary.lengths
    if scores is None or len(task.lengths) < 2:
        return []
    across = task.lengths[0] / 1.2, task.lengths[-1] * 1.2
    reference = task.methods.get(scores.reference)
    drawn: list[tuple[Row, Markup | None]] = []
    for row in run.rows:
        found = task.methods.get(row.name)
        if found is None:
            drawn.append((row, None))
            continue
        level = scores.kept * found.base.value if found.base and found.effective else None
        frame = Frame(across, (-4.0, 104.0), linear, {0.0: "0%", 50.0: "50%", 100.0: "100%"}, level)
        points = [
            Point(
                s.length,
                s.value,
                s.low,
                s.high,
                f"{s.length:,} tokens: {percent(s.value)}% ({percent(s.low)}–{percent(s.high)}%)",
            )
            for s in found.scores
        ]
        other = [(s.length, s.value) for s in reference.scores] if reference and row.name != scores.reference else []
        drawn.append((row, panel(_label(row, task, found), row, scores.trained_length, frame, points, other)))
    return drawn


def _label(row: Row, task: LengthTask, found: MethodLengths) -> str:
    ends = f"{percent(found.scores[-1].value)} % at {task.lengths[-1]:,} tokens"
    reached = f"effective length {found.effective.value:,} tokens" if found.effective else "no effective length"
    return f"{row.title}: {task.title}, score by length with 95 % intervals; {ends}, {reached}."
