"""Figures: what they show, and that labels keep apart."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import reporting_samples as samples

from limbeck.reporting import curves, figures, svg


def label(drawing: str) -> str:
    return ElementTree.fromstring(drawing).get("aria-label") or ""


def colours(drawing: str, kind: str) -> set[str]:
    return set(re.findall(kind + r": var\(--(\w+)\)", drawing))


def test_front_names_each_member_with_share_and_verdict() -> None:
    said = label(figures.front_by_size(samples.partly(), samples.metrics()))
    for member in samples.partly().members:
        kind = "raced" if member.proof is None else member.proof.verdict
        assert re.search(rf"{re.escape(member.spec)} [\d.]+ % \({kind}\)", said), said


def test_proved_members_are_solid_and_others_hollow() -> None:
    proved = figures.front_by_size(samples.result(), [])
    assert "accent" in colours(proved, "fill")
    assert "warn" not in colours(proved, "stroke")
    failed = figures.front_by_size(samples.nothing_proved(), [])
    assert "warn" in colours(failed, "stroke")
    assert "warn" not in colours(failed, "fill")


def test_every_colour_follows_the_page() -> None:
    drawings = [figures.front_by_size(samples.result(), samples.metrics()), curves.loss_curves(samples.metrics())]
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}", drawing)
        assert "DejaVu" not in drawing
        assert "http" not in drawing
    assert set(svg.LIGHT) == set(svg.DARK)


@pytest.mark.parametrize("palette", [svg.LIGHT, svg.DARK])
def test_text_colours_have_the_contrast_that_wcag_asks_for(palette: dict[str, str]) -> None:
    for name in ("ink", "muted", "accent", "warn", *svg.SERIES):
        for ground in ("paper", "panel"):
            assert contrast(palette[name], palette[ground]) >= 4.5, (name, ground)


def contrast(a: str, b: str) -> float:
    """WCAG 2.1 contrast ratio of two colours."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_latency_front_needs_measurements() -> None:
    whole = samples.result()
    assert figures.front_by_latency(replace(whole, members=[replace(m, latency={}) for m in whole.members]), []) == ""
    assert figures.front_by_latency(whole, []) != ""


def test_random_play_is_drawn_where_students_are_poor() -> None:
    whole = samples.result()
    poor = samples.proof("x", 0.1, 50, "not proved")
    low = replace(whole, members=[replace(whole.members[0], proof=poor)])
    assert ">random play<" in figures.front_by_size(low, [])
    assert ">random play<" not in figures.front_by_size(whole, [])


def test_front_without_any_played_member_has_axes_and_says_so() -> None:
    whole = samples.result()
    unplayed = replace(whole, members=[replace(m, proof=None) for m in whole.members])
    assert "no student was played" in label(figures.front_by_size(unplayed, []))


def test_a_share_of_one_is_the_teachers_own_line() -> None:
    drawing = figures.front_by_size(replace(samples.result(), retain=1.0), [])
    assert ">teacher<" in drawing
    assert "asked for" not in drawing


def test_strip_counts_its_differences() -> None:
    proof = samples.proof("x", 1.0, 200)
    student, teacher, chance = map(np.asarray, (proof.student_returns, proof.teacher_returns, proof.random_returns))
    above = int((student >= 0.95 * teacher + 0.05 * chance).sum())
    drawing = figures.episode_strip(proof, "k")
    assert label(drawing).startswith(f"{above} of 200 paired differences")
    dots = [d for d in re.findall(r'<path [^>]*d="([^"]*)"[^>]*stroke-linecap: round', drawing) if d.count("M") > 1]
    assert sum(d.count("M") for d in dots) == 200


def test_strip_of_a_single_episode_draws() -> None:
    proof = samples.proof("x", 1.0, 1, "undecided")
    assert "of 1 paired" in label(figures.episode_strip(proof, "k"))


def test_curves_leave_out_rows_without_numbers() -> None:
    rows = [{"stage": "imitate", "member": "a-s0", "env_steps": 1, "loss": None}, {"stage": "race", "env_steps": True}]
    assert curves.loss_curves(rows) == ""
    assert curves.race_curves(samples.result(), rows) == ""
    zero = [{"stage": "imitate", "member": "a-s0", "env_steps": i, "loss": 0.0} for i in range(3)]
    assert ">a<" in curves.loss_curves(zero)


def test_end_labels_keep_apart_and_inside() -> None:
    placed = curves._apart([10.0, 10.0, 11.0, 50.0], 14, 4, 100)
    assert min(np.diff(placed)) >= 14 - 1e-9
    crowded = curves._apart([90.0] * 20, 14, 0, 100)
    assert min(np.diff(crowded)) == pytest.approx(100 / 19)
    assert crowded[-1] <= 100


def test_labels_of_the_front_do_not_cover_each_other() -> None:
    drawing = ElementTree.fromstring(figures.front_by_size(samples.result(), []))
    boxes = []
    for text in drawing.iter("text"):
        if text.text in samples.SHAPES:
            x, y = map(float, re.findall(r"-?[\d.]+", text.get("transform") or f"{text.get('x')} {text.get('y')}")[-2:])
            boxes.append((x, y))
    assert len(boxes) == len(samples.SHAPES)
    assert all(abs(a[0] - b[0]) > 20 or abs(a[1] - b[1]) > 10 for i, a in enumerate(boxes) for b in boxes[:i])


def boxes_of(drawing: str, names: set[str]) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of the texts of these names, from their anchor and the width that letters take about."""
    found = []
    for text in ElementTree.fromstring(drawing).iter("text"):
        if text.text in names:
            x, y = map(float, re.findall(r"-?[\d.]+", text.get("transform") or f"{text.get('x')} {text.get('y')}")[-2:])
            middle = "text-anchor: middle" in (text.get("style") or "")
            width = 0.5 * 12 * len(text.text)
            left = x - width / 2 if middle else x
            found.append((left, y - 9, left + width, y))
    return found


@pytest.mark.parametrize("count", [3, 12])
def test_labels_of_members_at_one_place_all_stand_apart_and_off_the_teachers_line(count: int) -> None:
    """Members of nearly the same bytes that all keep 100 %: what three compressed GRUs on CartPole gave."""
    whole = samples.result()
    one = whole.members[0]
    assert one.proof is not None
    proof = replace(one.proof, retention=1.0, retention_low=0.952)
    specs = [f"gru:{i}:int8" for i in range(count)]
    family = [replace(one, name=s, spec=s, size_bytes=2600 + 9 * i, proof=proof) for i, s in enumerate(specs)]
    drawing = figures.front_by_size(replace(whole, members=family), [])
    boxes = boxes_of(drawing, {*specs, "teacher"})
    assert len(boxes) == count + 1
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3], (a, b)
    (teacher,) = boxes_of(drawing, {"teacher"})
    line = teacher[3] + 3  # the name stands 3 px above it
    assert not [box for box in boxes if box[1] < line < box[3]]


def test_the_teachers_name_stands_where_no_dot_is() -> None:
    """The fastest member lies near the left end, where the name stands as long as the member is not on the line."""
    whole = samples.result()
    one = whole.members[0]
    assert one.proof is not None
    (free, moved) = (
        boxes_of(figures.front_by_latency(replace(whole, members=[replace(one, proof=replace(one.proof, retention=kept))]), []), {"teacher"})[0][0]
        for kept in (0.97, 1.0)
    )  # fmt: skip
    assert moved > free + 40


def test_steps_below_the_curves_have_room_beside_each_other() -> None:
    rows = [{"stage": "imitate", "member": "a-s0", "env_steps": i * 999_000, "loss": 1.0 / (1 + i)} for i in range(19)]
    ticks = [
        t
        for t in ElementTree.fromstring(curves.loss_curves(rows)).iter("text")
        if re.fullmatch(r"[\d,]+,000", t.text or "")
    ]
    assert 3 <= len(ticks) <= 6


def test_an_element_that_is_no_drawing_is_an_error() -> None:
    with pytest.raises(ValueError, match="<script>"):
        svg.tidy("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "k", "label")


def test_a_standalone_figure_is_a_file_with_both_palettes() -> None:
    alone = svg.standalone(figures.front_by_size(samples.result(), []))
    root = ElementTree.fromstring(alone)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert svg.LIGHT["accent"] in alone
    assert svg.DARK["accent"] in alone


def test_importing_reporting_does_not_import_matplotlib() -> None:
    code = "import sys, limbeck.reporting; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules or 'imageio_ffmpeg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
