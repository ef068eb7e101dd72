"""What the page tells beside the verdicts: nothing where nothing was measured, and everything readable by everybody."""

from __future__ import annotations

import base64
import doctest
import re
from dataclasses import replace
from pathlib import Path

import pytest
import reporting_samples as samples
from test_page import Page, page_of

from limbeck import storage
from limbeck.contracts import Disagreement, Stressed
from limbeck.errors import StorageError
from limbeck.reporting import evidence, galleries, naming, pictures, trees, write

OPTIONAL = {"robustness", "gallery", "readable", "devices"}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which everything was measured, with its page."""
    folder = samples.write_rich(tmp_path_factory.mktemp("rich"), samples.rich())
    write(folder)
    return folder


@pytest.fixture(scope="module")
def page(rich: Path) -> Page:
    return Page((rich / "report.html").read_text())


def sections(page: Page) -> set[str]:
    return {value for tag, name, value in page.attributes if tag == "section" and name == "id"}


@pytest.mark.parametrize("module", [evidence, galleries, naming, pictures, trees])
def test_examples_of_the_sections(module: object) -> None:
    assert doctest.testmod(module).failed == 0


def test_performance_profiles_stand_where_the_tails_are(rich: Path) -> None:
    (section,) = re.findall(r'<section id="robustness".*?</section>', (rich / "report.html").read_text(), re.DOTALL)
    assert "Performance profiles" in section
    assert "(band)" in section


def test_what_was_not_measured_has_no_heading(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert not sections(page) & OPTIONAL
    linked = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert not linked & OPTIONAL


def test_what_was_measured_is_told(page: Page) -> None:
    assert sections(page) >= OPTIONAL
    for told in ("observation noise", "1 step", "25 % of steps", "worst 5 %", "121 [64, 170.2]", "48 % [42 %, 55 %]", "103 %, at least 100.4 %", "101.1 % [99.2 %, 102.5 %]", "needs 297 episodes", "cortex-m4f", "prune 0.5", "mean path"):  # fmt: skip
        assert told in page.text, told
    assert "In 63 of 1,010 states of 4 episodes of its own (6.2 %)" in page.text
    assert "costs 9.5 of return (fitted (error +1.2 [-0.5, +3]))" in page.text
    assert "teacher: main engine" in page.text
    assert "left leg on ground" in page.text  # numbers by name, in a state without a picture and in the bars


def test_pictures_are_embedded_with_words_for_who_does_not_see_them(rich: Path, page: Page) -> None:
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(sources) == len(alts) == 4 * 8
    assert alts[0] == "Step 31 of seed 1800: the teacher wants main engine, the student nothing"
    first = samples.rich().members[0]
    stored = (rich / first.disagreements[0].picture).read_bytes()
    assert base64.b64decode(sources[0].partition(",")[2]) == stored


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/etc/hostname", "gallery/absent.jpg", "gallery/huge.jpg", "result.json"]
)
def test_only_small_pictures_inside_the_run_are_embedded(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"x")
    run, whole = tmp_path / "run", samples.result()
    storage.write_bytes(run / "gallery" / "huge.jpg", b"\0" * 300_000)
    told = replace(whole.members[0], disagreements=(Disagreement(1, 2, "0", "1", 1.0, "nats", name),))
    (shown,) = galleries.galleries(replace(whole, members=[told]), run)
    assert shown["rows"][0]["picture"] == ""


def test_galleries_stop_where_the_page_would_become_too_large(rich: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(galleries, "LARGEST_GALLERY", 20_000)
    told = [row["picture"] for one in galleries.galleries(samples.rich(), rich) for row in one["rows"]]
    assert 0 < sum(picture != "" for picture in told) < 4 * 8
    assert sum(map(len, told)) <= 20_000


def test_a_damaged_gallery_is_refused(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "gallery" / "mlp:64x64-s0.json", {"states": "many"})
    with pytest.raises(StorageError, match=r"mlp:64x64-s0\.json is damaged"):
        galleries.galleries(samples.rich(), tmp_path)


def test_a_student_file_that_cannot_be_read_is_said_and_not_drawn(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "students" / "tree:leaves=4-s0" / "policy.safetensors", b"nonsense")
    (told,) = evidence.trees(samples.rich(), tmp_path)
    assert told["words"].startswith("not read: ")
    assert told["svg"] == ""


def test_levels_that_are_no_numbers_leave_the_bar_out() -> None:
    nan = float("nan")
    whole = samples.result()
    odd = Stressed("delay", 2.0, "steps", nan, nan, nan, nan, nan, 0, 0)
    (told,) = evidence.robustness(replace(whole, members=[replace(whole.members[0], stressed=[odd])]))
    assert told["rows"][0]["level"] == "2 steps"
    assert told["rows"][0]["bar"] == ""


def test_numbers_get_their_names_where_the_students_own_file_says_how_many_there_are(rich: Path) -> None:
    whole = samples.rich()
    tree = replace(whole.members[-1], saliency={"obs[4]": 0.7, "obs[9]": 0.2, "camera[1]": 0.1})
    absent = replace(whole.members[0], saliency={"obs[4]": 1.0})
    told = evidence.saliency(replace(whole, members=[tree, absent]), rich)
    assert [name for name, _, _ in told[0]["rows"]] == ["angle", "obs[9]", "camera[1]"]
    assert [name for name, _, _ in told[1]["rows"]] == ["obs[4]"]


# ---------------------------------------------------------------- for everybody


def test_landmarks_headings_tables_and_scrolling_regions_are_labelled(rich: Path, page: Page) -> None:
    raw = (rich / "report.html").read_text()
    assert [page.elements[tag] for tag in ("main", "nav", "h1", "footer")] == [1, 1, 1, 1]
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {value for tag, name, value in page.attributes if name == "aria-labelledby"} <= ids
    assert page.attributes.count(("a", "href", "#main")) == 1  # the first stop of the keyboard
    for region in re.findall(r'<(?:div|pre) [^>]*class="(?:scroll|data)[^>]*>', raw):
        assert 'tabindex="0"' in region, region
        assert 'aria-label="' in region, region
    for head in re.findall(r"<th\b[^>]*>", raw):
        assert 'scope="' in head, head
    for drawing in re.findall(r"<svg\b[^>]*>", raw):
        assert 'aria-label="' in drawing or 'aria-hidden="true"' in drawing, drawing[:200]


def test_every_colour_of_the_style_is_one_whose_contrast_is_known(rich: Path) -> None:
    """test_figures computes the contrast of the palettes; the page may use no other colours, but white and black behind pictures."""
    style = re.search(r"<style>(.*?)</style>", (rich / "report.html").read_text(), re.DOTALL)
    assert style is not None
    rules = re.sub(r"--\w+:[^;]*;", "", style[1])
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b", re.sub(r"#[a-z]+ ?[,{:]", "", rules))) <= {"#000", "#fff"}
    assert not re.search(r"\b(rgb|hsl)a?\(", rules)


def test_text_that_turns_round_stays_as_written(tmp_path: Path) -> None:
    page = page_of(tmp_path, samples.hostile(), samples.hostile_metrics())
    raw = (tmp_path / "report.html").read_text()
    assert "\u202e" not in raw
    assert "\\u202e" in page.text
