"""The command line: `limbeck VERB ...`. Flags are made from the verbs' own signatures; errors end in one line."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from limbeck import __version__
from limbeck.errors import InputError, LimbeckError, nearest, printable
from limbeck.verbs import VERBS

HELP = """limbeck {version}: any trained RL policy in, a family of tiny proved ones out.

usage: limbeck VERB [ARGUMENTS] [--json] [--debug]

{verbs}

  limbeck VERB --help   the arguments of one verb
  --json                print the result as JSON on standard output
  --debug               show the trace of an error
"""
TEXT = {
    "Any": str | None,
    "str | float | None": str | None,
    "str | Path": str,
    "str | Path | None": str | None,
}  # what an argument is when it is typed
CONTINUED = {"distill": "Finished rounds", "demo": "Finished rounds", "search": "Finished rounds",
             "prove": "Finished episodes", "stress": "Finished rows of a run"}  # what a verb that was stopped has kept  # fmt: skip
NUMBERS = {"INT": "whole number, such as 10", "FLOAT": "number, such as 0.5"}
POSITIONAL = {"distill": ("teacher",), "search": ("teacher",), "inspect": ("teacher",), "prove": ("student", "teacher", "env"), "teach": ("env", "algorithm"), "record": ("teacher", "env", "out"),
              "export": ("run",), "diagnose": ("run",), "check": ("folder",), "bench": ("folder",), "play": ("folder",), "stress": ("student", "teacher", "env"), "report": ("run",)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 2 input, 3 incomplete, 4 unsafe, 5 storage, 6 environment, 130, 143."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json, debug = (_take(given, flag) for flag in ("--json", "--debug"))
    try:
        code = _run(given, as_json)
        _let_go(arguments is None)
        return code
    except (Exception, KeyboardInterrupt, SystemExit, _Terminated) as error:
        _let_go(arguments is None)
        if debug:
            traceback.print_exc()
        code, text = _last_words(error, given[0] if given else "")
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more
            print(f"limbeck: {' '.join(text.split())}", file=sys.stderr)
        return code


def _last_words(error: BaseException, verb: str) -> tuple[int, str]:
    """Exit code and the one line that says what happened and what to do."""
    kept = f"{CONTINUED[verb]} are saved; run the same command again to continue." if verb in CONTINUED else ""
    then = kept or "Run the same command again."
    if isinstance(error, LimbeckError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        hanging = sys.modules.get("limbeck.tasks.hanging")
        if hanging is not None and hanging.watchdog.expired:  # its interrupt arrived just after the call came back
            return _last_words(hanging.watchdog.fault(), verb)
        return 130, f"interrupted. {then}"
    if isinstance(error, _Terminated):
        return 143, f"terminated. {then}"
    if isinstance(error, SystemExit):  # none of ours reaches this place
        return 6, (
            f"the environment or the teacher's Python code called exit ({printable(error.code, 40)}). "
            f"Mend it: it may raise, not exit. {then}"
        )
    if isinstance(error, BrokenPipeError):
        return 141, f"the reader of the output went away. {then}"
    if isinstance(error, MemoryError):
        return 5, f"out of memory. Use fewer or smaller students, or fewer rounds. {kept}".rstrip()
    kind, text = type(error).__name__, printable(" ".join(str(error).split()))
    return (
        1,
        f"unexpected {kind}: {text}. This is a defect of Limbeck: run again with --debug and report the trace.",
    )


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _let_go(whole: bool) -> None:
    """The result stands: a signal that still comes ends the process (where it is ours, `whole`) without another word."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if whole:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(given: list[str], as_json: bool) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP.format(version=__version__, verbs=_verb_list()), end="")
        return 0
    if given[0] == "--version":
        print(f"limbeck {__version__}")
        return 0
    name, *rest = given
    if name not in VERBS:
        raise InputError(f"unknown verb {printable(name)!r}{nearest(name, VERBS)} Allowed: {', '.join(VERBS)}.")
    call = _parse(name, rest)
    if call is None:
        return 0
    _prepare()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():  # for what environments print
        result = call()
    from limbeck import presenting

    try:
        return presenting.show(name, result, as_json)
    except BrokenPipeError:  # `| head`: the work is done, the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _prepare() -> None:
    """What only a whole process may decide: signals, hard ends of hanging environments, module search, thread spinning."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if "" not in sys.path:
        sys.path.insert(0, "")
    from limbeck.tasks import watchdog

    watchdog.hard_exit = True
    signal.signal(signal.SIGTERM, _terminate)


def _verb_list() -> str:
    return "\n".join(f"  {name:<9}{(inspect.getdoc(verb) or '').splitlines()[0]}" for name, verb in VERBS.items())


def _take(given: list[str], flag: str) -> bool:
    found = flag in given
    while flag in given:
        given.remove(flag)
    return found


# ---------------------------------------------------------------- flags


def _parse(name: str, rest: list[str]) -> Callable[[], Any] | None:
    """The verb with its arguments bound, or None when help was printed."""
    import tyro

    rest = [_in_full(name, a) for a in rest]
    flags = [a.partition("=")[0].replace("_", "-") for a in rest if a.startswith("--")]
    twice = next((flag for flag in flags if flags.count(flag) > 1), None)
    if twice is not None:
        raise InputError(
            f"{printable(twice)} was given twice. Allowed: once, as {printable(twice)} A B for several values."
        )
    surface = _surface(name)
    said = io.StringIO()
    help_asked = any(a in ("-h", "--help") for a in rest)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            bound, unknown = tyro.cli(
                surface,
                args=rest,
                prog=f"limbeck {name}",
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code and help_asked:
            print(
                said.getvalue().replace("{None}|", "").replace("(default: None)", "").replace("(default: )", ""), end=""
            )
            return None
        raise InputError(_plain(said.getvalue(), name)) from None
    if unknown:
        flags = [f"--{p.replace('_', '-')}" for p in inspect.signature(VERBS[name]).parameters]
        raise InputError(
            f"unknown argument {printable(unknown[0])!r}{nearest(unknown[0], flags)} See: limbeck {name} --help"
        )
    if bound.get("out") == "":  # as a path it would be the current folder
        flag = "OUT" if "out" in POSITIONAL.get(name, ()) else "--out"
        raise InputError(f"{flag} is empty. Give the path of {'a file or ' * (name in ('prove', 'play'))}a folder.")
    return lambda: VERBS[name](**bound)


def _in_full(name: str, argument: str) -> str:
    """A flag of several values that was given in the singular, --member, as the verb has it, --members."""
    flag, equals, value = argument.partition("=")
    known = inspect.signature(VERBS[name]).parameters
    several = f"{flag.removeprefix('--').replace('-', '_')}s"
    plural = flag.startswith("--") and several[:-1] not in known and several in known
    return f"{flag}s{equals}{value}" if plural and "Sequence" in str(known[several].annotation) else argument


def _surface(name: str) -> Callable[..., dict[str, Any]]:
    """A function with the verb's signature in types that can be typed on a command line; it returns its arguments."""
    import tyro

    verb = VERBS[name]
    parameters, annotations = [], {}
    for parameter in inspect.signature(verb).parameters.values():
        kind = _typed(str(parameter.annotation))
        positional = parameter.name in POSITIONAL.get(name, ())
        default = parameter.default
        if default is parameter.empty and kind == str | None:
            kind = str
        annotation = kind
        if positional:
            annotation = typing.Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=parameter.name.upper())]
        annotations[parameter.name] = annotation
        parameters.append(
            parameter.replace(annotation=annotation, default=default, kind=inspect.Parameter.KEYWORD_ONLY)
        )

    def surface(**bound: Any) -> dict[str, Any]:
        return bound

    vars(surface)["__signature__"] = inspect.Signature(parameters)  # what inspect.signature, and so tyro, reads
    surface.__annotations__ = annotations
    surface.__doc__ = (inspect.getdoc(verb) or "").split("\nReturns:")[0].split("\nRaises:")[0]
    surface.__name__ = name
    return surface


def _typed(annotation: str) -> Any:
    if annotation in TEXT:
        return TEXT[annotation]
    plain = annotation.replace("Sequence[str]", "tuple[str, ...]").replace("Sequence[int]", "tuple[int, ...]")
    return typing.get_type_hints(type("_", (), {"__annotations__": {"x": plain}}))["x"]


def _plain(boxed: str, name: str) -> str:
    """The parser's boxed message as one line: what was given, what is allowed, what to do."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    words = " ".join(line.strip("│╭╮╰╯─ ") for line in text.splitlines())
    see = f"See: limbeck {name} --help"
    if "Missing from" in words or "Required options" in words:
        needed = [p.name for p in inspect.signature(VERBS[name]).parameters.values() if p.default is p.empty]
        return f"limbeck {name} needs {' and '.join(needed).upper()}. {see}"
    if found := re.search(r"Missing value for argument '([^']+)'", words):
        return f"{found[1]} was given without a value. {see}"
    if found := re.search(r"Error parsing (\S+): .*?(?:\{None\}\|)?(\w+) could be instantiated from (\[.*?\])", words):
        return (
            f"{found[1]} was given {printable(found[3].strip('[]'))}, allowed: {NUMBERS.get(found[2], found[2])}. {see}"
        )
    if found := re.search(
        r"Error parsing (\S+): (?:invalid literal for|could not convert string to) (\w+).*?: ('.*?')", words
    ):
        return f"{found[1]} was given {printable(found[3])}, allowed: {NUMBERS.get(found[2].upper(), found[2])}. {see}"
    if found := re.search(r"Error parsing (\S+): no type matching .*?could be instantiated from (\[.*?\])", words):
        return f"{found[1]} was given {printable(found[2].strip('[]'))}, which it does not take. {see}"
    return f"{printable(' '.join(words.split()), 300) or 'the arguments are not understood'} {see}"


if __name__ == "__main__":
    sys.exit(main())
