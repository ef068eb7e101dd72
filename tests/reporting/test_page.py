"""The page: what it says, what it never says, and that nothing a stranger chose becomes markup."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reporting_samples as samples

from limbeck import storage
from limbeck.errors import InputError, StorageError
from limbeck.reporting import headline, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Every element, attribute and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if "title" in self._inside:
            self.title += data


def page_of(folder: Path, told: object = None, rows: object = None) -> Page:
    samples.write_run(folder, told or samples.result(), samples.metrics() if rows is None else rows)
    return Page(write(folder).read_text())


# ---------------------------------------------------------------- what it says


def test_finished_run_tells_headline_numbers_and_all_sections(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.title == "LunarLander-v3 · Limbeck report"
    assert headline(samples.result()) in page.text.replace("\u00a0", " ")
    sections = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    assert sections == {"front", "members", "video", "verdicts", "learning", "teacher", "bill", "reproduce"}
    for member in samples.result().members:
        assert member.name in page.text
        assert f"{member.parameters:,}" in page.text
    assert page.elements["svg"] == 2 + len(samples.result().members) + 3  # fronts, strips, curves
    assert "736,088" in page.text  # all environment steps of the bill
    assert "9f2c" * 16 in page.text
    assert "limbeck distill" in page.text


def test_anchors_of_the_navigation_exist_and_ids_are_unique(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert targets <= set(ids)


def test_page_is_a_function_of_the_folder(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        page_of(tmp_path / name)
        digests.add(hashlib.sha256((tmp_path / name / "report.html").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_members_after_the_stop_of_the_sequence_are_named(tmp_path: Path) -> None:
    page = page_of(tmp_path, samples.partly())
    assert "The 484-number student" in page.text
    assert "No proof played: mlp:8-s1, mlp:4-s1, linear-s1." in page.text


def test_nothing_proved_claims_nothing(tmp_path: Path) -> None:
    page = page_of(tmp_path, samples.nothing_proved())
    assert "Nothing is proved on LunarLander-v3: the one student tested was not shown to keep" in page.text
    assert ("span", "class", "verdict proved") not in page.attributes


def test_run_without_students_still_has_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, samples.empty(), rows=[])
    assert "no student was finished" in page.text
    assert page.elements["svg"] == 0


def test_unmeasured_speed_leaves_the_fact_out(tmp_path: Path) -> None:
    whole = samples.result()
    page = page_of(tmp_path, replace(whole, members=[replace(m, latency={}) for m in whole.members]))
    assert "one step" not in page.text
    assert "smallest proved" in page.text


def test_numbers_that_were_nan_are_shown_as_missing(tmp_path: Path) -> None:
    whole = samples.result()
    member = whole.members[0]
    assert member.proof is not None
    odd = replace(member.proof, retention=float("nan"), retention_low=float("-inf"), log_wealth=float("inf"))
    page = page_of(tmp_path, replace(whole, members=[replace(member, proof=odd)]))
    assert "nan" not in re.findall(r"[a-z]+", page.text)
    assert " inf" not in page.text


# ---------------------------------------------------------------- optional parts


def test_without_matplotlib_the_page_names_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = page_of(tmp_path)
    assert page.elements["svg"] == 0
    assert 'pip install "limbeck[report]"' in page.text
    assert "linear-s1" in page.text


def test_only_the_result_is_needed(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "result.json", samples.result())
    page = Page(write(tmp_path).read_text())
    assert "no video was made in this run" in page.text
    assert "The run recorded no learning curves." in page.text


def test_reason_for_a_missing_video_is_shown(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "video.json", {"reason": "digits is not made of single environments"})
    assert "No video: digits is not made of single environments" in page_of(tmp_path).text


def test_video_is_embedded_and_a_huge_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"\0" * 1000)
    told = {"seed": 7, "student": samples.HOSTILE[0], "teacher_return": 1.5, "teacher_steps": 9, "student_return": None}
    storage.write_json(tmp_path / "video.json", told)
    page = page_of(tmp_path)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("video", "src")]
    assert [s[:22] for s in sources] == ["data:video/mp4;base64,"]
    assert "The teacher: 1.5 after 9 steps and still going." in page.text
    (tmp_path / "video.mp4").write_bytes(b"\0" * 4_000_001)
    page = Page(write(tmp_path).read_text())
    assert page.elements["video"] == 0
    assert "too large for this page" in page.text


def test_metrics_cut_by_a_kill_are_read_up_to_the_cut(tmp_path: Path) -> None:
    samples.write_run(tmp_path, samples.result(), samples.metrics())
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "imit')
    assert Page(write(tmp_path).read_text()).elements["svg"] > 0


# ---------------------------------------------------------------- bad folders


def test_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no result\.json"):
        write(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("alpha",), "much"), (("mode",), "drunk"), (("members",), {}), (("bill", "race_steps"), 1.5), (("command",), 1)],
)
def test_damaged_result_is_refused_with_the_field(tmp_path: Path, path: tuple[str, ...], value: object) -> None:
    data = storage.plain(samples.result())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    storage.write_json(tmp_path / "result.json", data)
    with pytest.raises(StorageError, match=r"is damaged: result\." + r"\.".join(path)):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_damaged_metrics_are_refused(tmp_path: Path) -> None:
    samples.write_run(tmp_path, samples.result())
    (tmp_path / "metrics.jsonl").write_text("{nonsense\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl is damaged"):
        write(tmp_path)


# ---------------------------------------------------------------- hostile names, no requests, no secrets


def structure(page: Page) -> tuple[Counter[str], set[tuple[str, str]]]:
    """Elements and the kinds of attributes, without what the drawings hold: lengths of names move labels there."""
    drawing = {"g", "path", "use", "text", "tspan", "defs", "clippath", "rect", "svg"}
    elements = Counter({k: n for k, n in page.elements.items() if k not in drawing})
    return elements, {(tag, name) for tag, name, _ in page.attributes}


def test_hostile_names_add_no_element_and_no_attribute(tmp_path: Path) -> None:
    def neutral(text: str) -> str:
        return f"name{samples.HOSTILE.index(text) if text in samples.HOSTILE else ''}"

    plain_folder, hostile_folder = tmp_path / "plain", tmp_path / "hostile"
    rows = samples.hostile_metrics()
    hostile = page_of(hostile_folder, samples.hostile(), rows)
    text = json.dumps(storage.read_json(hostile_folder / "result.json"))
    for bad in sorted(samples.HOSTILE, key=len, reverse=True):
        text = text.replace(json.dumps(bad)[1:-1], neutral(bad))
    plain_rows = [{k: neutral(v) if k == "member" else v for k, v in row.items()} for row in rows]
    storage.write_text(plain_folder / "result.json", text)
    storage.append_metrics(plain_folder, plain_rows)
    shutil.copy(hostile_folder / "recipe.yaml", plain_folder)
    plain = Page(write(plain_folder).read_text())
    assert structure(hostile) == structure(plain)
    assert hostile.elements["script"] == hostile.elements["img"] == hostile.elements["iframe"] == 0
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    page = page_of(tmp_path, samples.hostile(), samples.hostile_metrics())
    assert page.title == "<img src=x onerror=document.title='CANARY'> · Limbeck report"
    assert samples.HOSTILE[1] in page.text
    assert "{{ 7*7 }}" in page.text
    assert r"\x1b]0;CANARY\x07" in page.text
    raw = (tmp_path / "report.html").read_text()
    assert "\x1b" not in raw
    assert "\x07" not in raw


def test_mathematics_in_a_name_is_not_typeset(tmp_path: Path) -> None:
    whole = samples.result()
    members = [replace(whole.members[0], name=r"$\frac{1}{2}$", spec=r"$\frac{1}{2}$")]
    page_of(tmp_path, replace(whole, members=members))
    raw = (tmp_path / "report.html").read_text()
    assert re.search(r"<text[^>]*>\$\\frac\{1\}\{2\}\$</text>", raw)


def test_page_requests_nothing_and_carries_its_policy(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"\0" * 10)
    page = page_of(tmp_path, samples.hostile(), samples.hostile_metrics())
    policies = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content")]
    assert policies[0].startswith("default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'")
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "poster", "data", "srcset"):
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert "url(" not in value.replace("url(#", "")
    raw = (tmp_path / "report.html").read_text()
    style = re.search(r"<style>.*?</style>", raw, re.DOTALL)
    assert style is not None
    assert "url(" not in style[0]
    assert "@import" not in style[0]


def test_home_folders_and_user_names_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-token")
    monkeypatch.setenv("HOME", str(tmp_path / "homes" / "grace"))
    whole = samples.result()
    told = replace(whole, command=f"limbeck distill {tmp_path}/homes/grace/t.zip /home/ada/u.zip /Users/ada/v.zip")
    page_of(tmp_path / "run", told)
    raw = (tmp_path / "run" / "report.html").read_text()
    assert "limbeck distill ~/t.zip ~/u.zip ~/v.zip" in raw
    assert not re.search(r"grace|/home/|/Users/|\bada\b|canary-token", raw)


def test_page_stays_small(tmp_path: Path) -> None:
    """Eleven members with a thousand episodes each, and a video at its limit: below 6 MB."""
    whole = samples.result()
    long = samples.proof("long", 0.99, 1000)
    members = [replace(whole.members[0], name=f"mlp:{i}-s0", proof=long) for i in range(11)]
    (tmp_path / "video.mp4").write_bytes(b"\0" * 1_500_000)
    page_of(tmp_path, replace(whole, members=members))
    assert (tmp_path / "report.html").stat().st_size < 6_000_000


# ---------------------------------------------------------------- a real browser

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip


def dom(path: Path, profile: Path) -> str:
    """The document after the browser has loaded it."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_browser_runs_nothing_from_hostile_names(tmp_path: Path) -> None:
    page_of(tmp_path, samples.hostile(), samples.hostile_metrics())
    shown = Page(dom(tmp_path / "report.html", tmp_path / "profile"))
    assert shown.title == "<img src=x onerror=document.title='CANARY'> · Limbeck report"
    assert shown.elements["script"] == shown.elements["img"] == 0
    assert shown.elements["svg"] > 3


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_browser_control_the_canary_fires_without_escaping(tmp_path: Path) -> None:
    """The attack works where nothing is escaped, so the test above can fail."""
    (tmp_path / "bad.html").write_text(f"<title>x</title><body>{samples.HOSTILE[1]}</body>")
    assert Page(dom(tmp_path / "bad.html", tmp_path / "profile")).title == "CANARY"
