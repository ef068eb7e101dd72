"""Maps of pictures on the page: drawn small, said in words, and nothing of a damaged or hostile one."""

from __future__ import annotations

import doctest
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reporting_samples as samples
from test_page import page_of

from limbeck.contracts import Looked
from limbeck.reporting import heat

NAN = float("nan")


def looked(shares: np.ndarray, key: str = "") -> Looked:
    return Looked(key, 84, 84, tuple(map(tuple, shares.tolist())), 64)


def told(looks: dict[str, Looked]) -> list[dict[str, str]]:
    whole = samples.result()
    return heat.maps(replace(whole, members=[replace(whole.members[0], looks=looks)]))


def test_examples() -> None:
    assert doctest.testmod(heat).failed == 0


def test_the_page_draws_the_map_and_says_it(tmp_path: Path) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(100)).reshape(10, 10)
    whole = samples.result()
    hostile = '"><script>alert(1)</script>'
    looks = {"": looked(shares), hostile: looked(np.eye(3), hostile)}
    page = page_of(tmp_path, replace(whole, members=[replace(whole.members[0], looks=looks), *whole.members[1:]]))
    assert page.elements["script"] == 0
    assert "alert(1)" in page.text, "a key of the observation is a name, not markup"
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    assert f"looks most at row {row + 1}, column {column + 1} of 10 x 10 patches" in page.text
    raw = (tmp_path / "report.html").read_text()
    (section,) = re.findall(r'<section id="readable".*?</section>', raw, re.DOTALL)
    drawing, _ = re.findall(r'<svg class="heat".*?</svg>', section, re.DOTALL)
    assert 'role="img"' in drawing
    assert f'aria-label="Map of the picture: looks most at row {row + 1}' in drawing
    assert len(drawing) < 5000
    assert ("a", "href", "#readable") in page.attributes


@pytest.mark.parametrize(
    "shares",
    [(), ((),), ((1.0,), (0.5, 0.5)), ((NAN, 1.0),), ((-0.5, 1.5),), ((0.0, 0.0),), tuple((1.0,) for _ in range(33))],
)
def test_what_is_no_map_is_left_out(shares: tuple[tuple[float, ...], ...]) -> None:
    assert told({"": Looked("", 84, 84, shares, 64)}) == []


def test_the_words_tell_how_concentrated_it_is() -> None:
    one = np.zeros((4, 4))
    one[1, 2] = 1.0
    (concentrated,), (spread,) = told({"": looked(one)}), told({"": looked(np.full((4, 4), 1 / 16))})
    assert concentrated["words"].startswith("looks most at row 2, column 3 of 4 x 4 patches (100 % of the influence); half of it lies in 1 of 16")  # fmt: skip
    assert "half of it lies in 8 of 16" in spread["words"]


def test_maps_stop_before_the_page_becomes_large() -> None:
    many = {str(i): looked(np.eye(2), str(i)) for i in range(2 * heat.MOST_MAPS)}
    assert len(told(many)) == heat.MOST_MAPS
