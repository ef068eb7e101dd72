"""What each verb prints: words for people, or JSON for programs; and the exit code its result deserves."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from limbeck import storage
from limbeck.contracts import Artifact, Proof, RunResult, Stressed, TeacherInfo, confidence
from limbeck.errors import InputError, printable

if TYPE_CHECKING:
    from limbeck.recordings import Recordings
    from limbeck.scale.fronts import SearchResult
    from limbeck.standalone.benching import Bench
    from limbeck.standalone.checking import Checked
    from limbeck.standalone.diagnosing import Diagnosis
    from limbeck.standalone.playing import Played


LEVEL = 25  # columns of a disturbance's level


def show(verb: str, result: Any, as_json: bool) -> int:
    """Print the result of a verb; returns the exit code."""
    if verb == "record":  # its arrays are in the folder
        result = (
            result
            if not as_json
            else {"episodes": len(result.episodes), "steps": result.rows, "return": float(result.returns.mean())}
        )
    if as_json:
        json.dump(storage.plain(result), sys.stdout, indent=1)
        print()
    else:
        PRINTERS[verb](result)
    if verb == "bench":
        return 0 if result.ok else InputError.exit_code
    if verb == "check":
        return InputError.exit_code if any(row.ok is False for row in result) else 0
    return 0


def _run(result: RunResult) -> None:
    from limbeck import reporting

    print()
    reporting.print_table(result)


def _search(result: SearchResult) -> None:
    """The front, then the proofs of its members within reach, then what all of it cost."""
    width = max(40, min(100, shutil.get_terminal_size().columns))
    print(f"\n{'front':<26}{'bytes':>8}{'return':>9}{'keeps':>8}  verdict")
    for row in result.front:
        keeps = f"{100 * row.retention:.1f} %" if math.isfinite(row.retention) else "-"
        print(
            f"{printable(row.name, 25):<26}{row.size_bytes:>8,}{row.mean_return:>9.4g}{keeps:>8}  {row.verdict or 'not tested'}"
        )
        print(
            textwrap.fill(
                row.method.words + ", polished" * row.polished, width, initial_indent="    ", subsequent_indent="    "
            )
        )
    _run(result.final)
    bill = result.bill
    counts = f"{result.trained} candidates, {result.full} at the highest fidelity, {result.refused} refused before training, {result.failed} failed"
    spent = f"{bill.env_steps:,} environment steps, {bill.teacher_queries:,} teacher queries, {bill.gradient_steps:,} gradient steps, {bill.seconds:.0f} s"
    _wrapped("searched", f"{counts}; {result.sampler}", width)
    _wrapped("cost", spent, width)


def _teacher(info: TeacherInfo) -> None:
    rows = [("file", info.path), ("format", info.format), ("algorithm", info.algorithm), ("sha256", info.sha256)]
    rows += [(key, value) for key, value in info.stated.items() if key != "code"]
    for key, value in rows:
        print(f"{printable(key):<18} {printable(_words(value), 400)}")
    for note in info.notes:
        print(f"{'note':<18} {printable(note, 400)}")
    if info.unread:
        print(f"{'left unread':<18} {printable(', '.join(info.unread), 400)}")
    for entry, names in (info.stated.get("code") or {}).items():
        print(f"{'would run':<18} {printable(entry)}: {printable(', '.join(names), 400)}")


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return json.dumps(storage.plain(value)) if isinstance(value, dict) else str(value)


def _proof(result: Proof | dict[str, Any]) -> None:
    if isinstance(result, dict):
        _plan(result)
        return
    claim = f"against {100 * result.retain:g} % of" if result.retain < 1 else "better than"
    gain = f", by {100 * (result.retain - 1):g} % of its gain over random play" * (result.retain > 1)
    print(f"{result.verdict}: {printable(result.member)} {claim} the teacher on {printable(result.task)}{gain}")
    low = f">= {100 * result.retention_low:.1f} %" if math.isfinite(result.retention_low) else "no lower bound yet"
    print(f"episodes         {result.episodes}, played by {result.played_by}")
    print(f"retention        {100 * result.retention:.1f} % measured, {low} at {confidence(result.alpha)} confidence")
    bounds = f"[{result.bounds.floor:.4g}, {result.bounds.ceiling:.4g}]: {result.bounds.source}"
    for label, text in (("bounds", bounds), ("reason", result.reason)):
        _wrapped(label, text, _width(), 17)


def _plan(forecast: dict[str, Any]) -> None:
    """A forecast from a small pilot, as a sentence; --json has its numbers."""
    pilot = f"a pilot of {forecast['pilot_episodes']} episodes"
    if forecast["median"] is None:
        print(
            f"not likely to be proved within the most episodes allowed, by {pilot}: raise --max-episodes or lower --retain"
        )
        return
    most = "more than allowed" if forecast["nine_in_ten"] is None else f"{forecast['nine_in_ten']:.0f}"
    print(
        f"about {forecast['median']:.0f} episodes ({most} in one of ten proofs), about {forecast['env_steps']:,} environment steps, by {pilot}"
    )


def _stressed(rows: Sequence[Stressed]) -> None:
    """Teacher and student side by side, a line for each disturbance and level."""
    from limbeck.proof.robustness import kept, level_of

    notes: dict[str, str] = {}  # behind the table: what is too long for its columns
    print(f"{'disturbance':<13}{'level':<{LEVEL}}{'teacher':>9}{'student':>9}  keeps (95 % interval)")
    for row in rows:
        level, (share, aside, why) = level_of(row), kept(row).partition(" (")
        if len(level) >= LEVEL:
            level = f"{row.level:g} *"
            notes[f"* of {row.disturbance}"] = row.unit
        if aside:
            notes[share if share == "-" else "no interval"] = why.removeprefix("no interval: ").rstrip(")")
        print(f"{row.disturbance:<13}{level:<{LEVEL}}{row.teacher:>9.4g}{row.student:>9.4g}  {share}")
    for sign, words in notes.items():
        _wrapped(f"{sign}:", words, _width(), 18)
    steps = sum(row.env_steps for row in rows)
    print(f"{rows[0].episodes} episodes of each, {steps:,} environment steps; measured, not proved")


def _diagnosis(found: Diagnosis) -> None:
    """The cause, the ladder of remedies that it was read from, and what to do, in lines that fit the terminal."""
    width = max(40, min(100, shutil.get_terminal_size().columns))
    sure = f" ({100 * found.sure:.0f} % of resampled seeds agree)" if found.cause != "unclear" else ""
    print(f"{found.cause}: {printable(found.member)} on {printable(found.task)}")
    _wrapped("why", found.reason + sure, width)
    _wrapped("to do", found.remedy, width)
    interval = f"95 % interval {100 * found.low:.1f} to {100 * found.high:.1f} %, {found.episodes} episodes"
    kept = f"{100 * found.retention:.1f} % of the teacher over random play ({interval})"
    _wrapped(
        "retention", kept if math.isfinite(found.retention) else "none: the teacher is not above random play", width
    )
    print(f"\n{'':<24}{'return':>10}  missing for want of")
    for who, mean, cause in found.ladder:
        part = f"{100 * found.parts[cause]:>6.1f} %  {cause}" if cause in found.parts else ""
        print(f"{printable(who):<24}{mean:>10.4g}  {part}".rstrip())
    print()
    places = {"training": "the rows it learnt from", "teacher": "fresh ones of the teacher", "student": "its own"}
    shares = ", ".join(f"{100 * found.disagreement[key]:.1f} % on {where}" for key, where in places.items())
    _wrapped("disagrees", f"{shares} ({found.unit})", width)
    _wrapped("view", found.hidden, width)
    if found.expected is not None:
        _wrapped("expected", f"{found.expected:.4g}, {found.expected_from}", width)
    bill = found.bill
    _wrapped("cost", f"{bill.env_steps:,} environment steps, {bill.gradient_steps:,} gradient steps, {bill.seconds:.0f} seconds", width)  # fmt: skip
    for note in found.notes:
        _wrapped("note", note, width)


def _wrapped(label: str, text: str, width: int, indent: int = 11) -> None:
    begin = f"{label:<{indent}}"
    print(textwrap.fill(printable(text, 800), width, initial_indent=begin, subsequent_indent=" " * indent))


def _width() -> int:
    return max(40, min(100, shutil.get_terminal_size().columns))


def _artifacts(made: list[Artifact]) -> None:
    for artifact in made:
        note = f"  {artifact.note}" if artifact.note else ""
        print(f"{artifact.target:<6} {artifact.size_bytes:>9,} bytes  {artifact.folder}{note}")


def _recorded(made: Recordings) -> None:
    print(f"{len(made.episodes)} episodes, {made.rows:,} steps, return {made.returns.mean():.4g} on average")


def _checks(rows: list[Checked]) -> None:
    """A line for every backend, then what it did in closed loop and what it costs."""
    width = max(40, min(120, shutil.get_terminal_size().columns))
    member = ""
    for row in rows:
        if row.member != member:
            member = row.member
            print(printable(member))
        word = {True: "ok", False: "FAIL", None: "-"}[row.ok]
        measured = f"worst error {row.worst_error:.1e}, {row.actions_equal:.1%} same actions, " * (row.ok is not None)
        _filled(f"{word:<5}{row.target:<12}{printable(row.backend):<12}", measured + printable(row.note, 400), width)
        if loop := row.loop:
            played = f"{loop.episodes} episode{'s' * (loop.episodes != 1)}, {loop.steps:,} steps, {loop.actions_equal:.1%} same actions"
            _filled(
                "       closed loop: ",
                f"{played}, return {loop.mean_return:.4g}, {loop.reference}'s {loop.reference_return:.4g}",
                width,
            )
        if device := row.device:
            sizes = (
                f"{device.flash_bytes:,} bytes of flash, {device.ram_bytes:,} of RAM, {device.stack_bytes:,} of stack"
            )
            _filled("       costs: ", f"{sizes}, {device.instructions:,} instructions a step", width)
    for why in dict.fromkeys(row.unplayed for row in rows if row.unplayed):
        _filled("no closed loop: ", printable(why, 400), width)


def _bench(result: Bench) -> None:
    """A line for every contestant, the fastest first; the artefact's own pass or fail."""
    from limbeck.standalone.benching import words

    width = max(40, min(120, shutil.get_terminal_size().columns))
    print(f"budget {words(result.budget_seconds)}: 99 of 100 calls end within it")
    member = ""
    for row in result.rows:
        if row.member != member:
            member = row.member
            print(printable(member))
        if not row.calls:
            _filled(
                f"{'-' if row.within is None else 'FAIL':<5}{printable(row.name):<14}", printable(row.note, 400), width
            )
            continue
        word = {True: "ok", False: "FAIL", None: ""}[row.within]
        times = (row.p50_seconds, row.p99_seconds, row.max_seconds, row.jitter_seconds)
        text = ", ".join(f"{name} {words(v)}" for name, v in zip(("p50", "p99", "max", "jitter"), times, strict=True))
        _filled(f"{word:<5}{printable(row.name):<14}", text, width)


def _filled(begin: str, text: str, width: int) -> None:
    print(textwrap.fill(begin + text, width, subsequent_indent=" " * 7, break_on_hyphens=False))


def _played(result: Played) -> None:
    if result.page is not None:
        print(result.page)
        return
    mean = sum(one.total for one in result.episodes) / max(len(result.episodes), 1)
    print(f"{len(result.episodes)} episodes played" + f", return {mean:.4g} on average" * bool(result.episodes))


def _taught(result: Any) -> None:
    told = storage.plain(result)
    measured = told.pop("evaluation")
    told["return"] = (
        f"{measured['mean']:.1f} [{measured['low']:.1f}, {measured['high']:.1f}] over {measured['episodes']} fresh episodes"
    )
    for key, value in told.items():
        print(f"{key.replace('_', ' '):<18} {printable(_words(value), 400)}")


PRINTERS: dict[str, Callable[[Any], None]] = {
    "distill": _run,
    "search": _search,
    "demo": _run,
    "inspect": _teacher,
    "prove": _proof,
    "stress": _stressed,
    "diagnose": _diagnosis,
    "export": _artifacts,
    "check": _checks,
    "bench": _bench,
    "play": _played,
    "report": print,
    "teach": _taught,
    "record": _recorded,
}
