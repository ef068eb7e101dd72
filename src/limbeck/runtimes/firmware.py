"""A generated policy as a program for microcontrollers: boards, C text, building with gcc, sizes of what was linked.

The program talks to its host over semihosting (Arm IHI 0100; RISC-V has the same calls): rows come in on standard
input, answers leave on standard output. Its stack lies at the lowest address of RAM, so that a stack that grows too
deep faults and cannot change a number in silence.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import struct
import subprocess  # compilers and emulators are programs
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck import storage
from limbeck.errors import InputError, printable, unknown
from limbeck.runtimes.compiled_c import FILE, prefix_of

SECONDS = 120  # that a compiler may take
LEAST_STACK, MOST_STACK = 1024, 2**17  # bytes: with fewer a program does not fit, more are of no use


@dataclass(frozen=True)
class Board:
    """A microcontroller that QEMU has, with the memory of its board."""

    gcc: str
    flags: tuple[str, ...]
    qemu: str
    machine: str
    flash: tuple[int, int]  # address, bytes
    ram: tuple[int, int]
    shift: int  # an instruction takes 2**shift ns of the emulator's time
    tick: float  # instructions per count of the board's timer at that shift
    packages: tuple[str, str]  # of Debian: compiler with its libraries, emulator


_ARM = ("gcc-arm-none-eabi libnewlib-arm-none-eabi", "qemu-system-arm")
_MPS2 = ((0, 2**22), (0x20000000, 2**22))


def _arm(core: str, flags: tuple[str, ...], machine: str, memory: tuple[tuple[int, int], tuple[int, int]], megahertz: int) -> Board:  # fmt: skip
    """An Arm board whose SysTick counts so many times a microsecond; at shift 3 an instruction takes 8 ns."""
    flags = ("-mthumb", f"-mcpu={core}", *flags)
    return Board("arm-none-eabi-gcc", flags, "qemu-system-arm", machine, *memory, 3, 1000 / megahertz / 8, _ARM)


BOARDS: Mapping[str, Board] = {
    "cortex-m0": _arm("cortex-m0", ("-mfloat-abi=soft",), "microbit", ((0, 2**18), (0x20000000, 2**14)), 16),
    "cortex-m3": _arm("cortex-m3", ("-mfloat-abi=soft",), "mps2-an385", _MPS2, 25),
    "cortex-m4f": _arm("cortex-m4", ("-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"), "mps2-an386", _MPS2, 25),
    "cortex-m7": _arm("cortex-m7", ("-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"), "mps2-an500", _MPS2, 25),
    "rv32": Board("riscv64-unknown-elf-gcc", ("--specs=picolibc.specs", "-march=rv32imac", "-mabi=ilp32"), "qemu-system-riscv32", "virt", (0x80000000, 2**22),
                  (0x80400000, 2**22), 0, 1.0, ("gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf", "qemu-system-misc")),
}  # fmt: skip

COMPILE_FLAGS = ("-std=c99", "-O2", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections")


def board_of(name: str) -> Board:
    """The board of a name. Raises InputError for any other."""
    if name not in BOARDS:
        raise unknown("microcontroller", name, BOARDS)
    return BOARDS[name]


def missing(name: str) -> str:
    """What this machine lacks to build for a board and to emulate it, with the packages that have it; or empty."""
    board = board_of(name)
    lacking = [
        (program, package)
        for program, package in zip((board.gcc, board.qemu), board.packages, strict=True)
        if shutil.which(program) is None
    ]
    if not lacking:
        return ""
    programs, packages = (" ".join(words) for words in zip(*lacking, strict=True))
    return f"no {programs.replace(' ', ', no ')}: apt-get install {packages}"


def tools(name: str) -> str:
    """The compiler and the emulator of a board with their versions."""
    board = board_of(name)
    return f"{board.gcc} {_version(board.gcc)}, {board.qemu} {_version(board.qemu)}, {' '.join(COMPILE_FLAGS[1:3])}"


@functools.cache
def _version(program: str) -> str:
    found = re.search(r"\b(\d+\.\d+\.\d+)\b", _run([program, "--version"]))
    return found.group(1) if found else "of unknown version"


# ---------------------------------------------------------------- the program

_LINK = """MEMORY {
    FLASH (rx) : ORIGIN = @flash, LENGTH = @length
    RAM (rwx) : ORIGIN = @ram, LENGTH = @length
}
SECTIONS {
    .text : { KEEP(*(.begin)) *(.text*) *(.rodata*) *(.srodata*) . = ALIGN(8); } > FLASH
    .ARM.exidx : { *(.ARM.exidx*) } > FLASH
    .tls (NOLOAD) : { tls_begin = .; *(.tdata*) *(.tbss*) . = ALIGN(8); } > RAM
    .stack (NOLOAD) : { stack_bottom = .; . = . + @stack; stack_top = .; } > RAM
    data_source = LOADADDR(.data);
    .data : { data_begin = .; *(.data*) *(.sdata*) . = ALIGN(8); data_end = .; } > RAM AT > FLASH
    .bss (NOLOAD) : { bss_begin = .; *(.bss*) *(.sbss*) *(COMMON) . = ALIGN(8); bss_end = .; } > RAM
    /DISCARD/ : { *(.ARM.attributes) *(.comment) *(.eh_frame*) *(.init_array*) *(.fini_array*) *(.init) *(.fini) }
}
"""

_PROGRAM = r"""
#include "policy.h"
#include <stddef.h>
#include <stdint.h>

int *__errno(void);
int *__errno(void) /* all of the C library that its mathematics needs */
{
    static int number;
    return &number;
}

extern uint32_t stack_bottom[], stack_top[], data_source[], data_begin[], data_end[], bss_begin[], bss_end[];
int main(void);
void start(void);

#ifdef __riscv
__attribute__((naked, section(".begin"))) void start(void)
{
    __asm__ volatile("la sp, stack_top\n la tp, tls_begin\n la t0, begin\n jr t0");
}
#define STARTED begin
static uint32_t timer(void)
{
    uint32_t count;
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrr %0, minstret\n.option pop" : "=r"(count));
    return count;
}
static void prepare(void) {}
#else
static void fault(void)
{
    for (;;)
        __asm__ volatile("udf #0"); /* a fault inside of a fault: the emulator stops and says so */
}
static volatile uint32_t turns;
static void turned(void)
{
    turns++;
}
__attribute__((section(".begin"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))stack_top, start, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, turned};
#define STARTED start
static uint32_t timer(void) /* SysTick's current value, which counts down, and its turns */
{
    uint32_t before, now;
    do {
        before = turns;
        now = 0xFFFFFF - *(volatile uint32_t *)0xE000E018;
    } while (before != turns);
    return (before << 24) + now;
}
static void prepare(void)
{
    *(volatile uint32_t *)0xE000E014 = 0xFFFFFF; /* its reload value: 24 bits */
    *(volatile uint32_t *)0xE000E018 = 0;
    *(volatile uint32_t *)0xE000E010 = 7; /* enabled, with its interrupt, from the core's clock */
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88 |= 0xF << 20; /* coprocessors 10 and 11: the floating-point unit */
    __asm__ volatile("dsb\n isb");
#endif
}
#endif

void STARTED(void)
{
    uint32_t *from = data_source, *to;
    prepare();
    for (to = data_begin; to < data_end;)
        *to++ = *from++;
    for (to = bss_begin; to < bss_end;)
        *to++ = 0;
    main();
    for (;;)
        ;
}

#define CARRIED offsetof(@p_state, steps) /* counters and the room for long vectors lie behind what steps hand on */
#define PAINT 0xA5C35A3Cu

@p_state @p_memory;
static float obs[@P_OBS], params[@P_PARAMS];
static @p_action action[@P_ACTIONS];
static int input, output;

static int host(int call, void *block)
{
#ifdef __riscv
    register int a0 __asm__("a0") = call;
    register void *a1 __asm__("a1") = block;
    __asm__ volatile(".option push\n.option norvc\n.balign 16\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
    return a0;
#else
    register int r0 __asm__("r0") = call;
    register void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#endif
}

static void leave(void)
{
    host(0x18, (void *)0x20026); /* SYS_EXIT, the application's own */
}

static int standard(int mode)
{
    uintptr_t block[3] = {(uintptr_t) ":tt", 0, 3};
    block[1] = (uintptr_t)mode;
    return host(1, block); /* SYS_OPEN */
}

/* SYS_READ is 6, SYS_WRITE is 5; both say how many bytes are left, all of them at the end of the stream */
static void all(int call, int stream, void *place, int bytes)
{
    char *at = place;
    while (bytes > 0) {
        uintptr_t block[3];
        int left;
        block[0] = (uintptr_t)stream, block[1] = (uintptr_t)at, block[2] = (uintptr_t)bytes;
        left = host(call, block);
        if (left < 0 || left >= bytes)
            leave();
        at += bytes - left, bytes = left;
    }
}

/* the lowest word of the stack that a step changed, in bytes below here */
static uint32_t depth(volatile uint32_t *here, int paint)
{
    volatile uint32_t *at = stack_bottom;
    if (paint)
        for (; at < here; at++)
            *at = PAINT;
    else
        while (at < here && *at == PAINT)
            at++;
    return (uint32_t)((char *)here - (char *)at);
}

int main(void)
{
    uint32_t sizes[5] = {0x4B424D4Cu, @P_OBS, @P_PARAMS, @P_ACTIONS, CARRIED}, told[2], asked;
    volatile uint32_t here[1];
    input = standard(0), output = standard(4);
    all(5, output, sizes, sizeof sizes);
    for (;;) {
        all(6, input, &asked, 4); /* bit 0: an episode begins; bit 1: measure */
        all(6, input, &@p_memory, CARRIED);
        all(6, input, obs, sizeof obs);
        if (asked & 1)
            @p_reset(&@p_memory);
        if (asked & 2)
            depth(here - 16, 1);
        told[0] = timer();
        @p_step(&@p_memory, obs, params, action);
        told[0] = timer() - told[0];
        told[1] = asked & 2 ? depth(here - 16, 0) + 64 : 0;
        all(5, output, &@p_memory, CARRIED);
        all(5, output, params, sizeof params);
        all(5, output, action, sizeof action);
        all(5, output, told, sizeof told);
    }
}
"""


def check_size(name: str, constants: int) -> None:
    """Raise DoesNotFit where constants alone, in bytes, fill a board's flash: without building anything."""
    _check_fits("flash", constants, board_of(name).flash[1])


class DoesNotFit(InputError):
    """A board's memory is too small for the policy."""


@dataclass(frozen=True)
class Image:
    """A linked program: the bytes that an emulator loads, and what the policy in it takes."""

    elf: bytes
    flash: int  # bytes of code and constants of the policy, libm and libgcc; the program around it left out
    ram: int  # bytes of RAM likewise, one state included, the stack not
    stack: int  # bytes of RAM that are left for the stack


@functools.lru_cache(maxsize=16)
def build(text: str, name: str) -> Image:
    """The policy with the program around it, for a board. Raises DoesNotFit where the board's memory is too small."""
    board, prefix = board_of(name), prefix_of(text)
    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        _write_sources(Path(place), text, prefix)
        for source in ("policy", "main"):
            _run([board.gcc, *board.flags, *COMPILE_FLAGS, "-c", f"{source}.c", "-o", f"{source}.o"], place)
        roots = [f"-Wl,-u,{prefix.lower()}_{word}" for word in ("step", "reset", "memory")]
        flash, ram = _sizes(_link(board, place, 0, (*roots, "-Wl,-e,0")))
        needed, static = _sizes(_link(board, place, 0, ()))
        _check_fits("flash", needed, board.flash[1])
        _check_fits("RAM, a stack of 1 KiB included", static + LEAST_STACK, board.ram[1])
        stack = min((board.ram[1] - static - 64) // 8 * 8, MOST_STACK)
        return Image(_link(board, place, stack, ()), flash, ram, stack)


# ---------------------------------------------------------------- building


def _write_sources(place: Path, text: str, prefix: str) -> None:
    storage.write_text(place / FILE, text)
    storage.write_text(place / "policy.c", f'#define {prefix}_IMPLEMENTATION\n#include "{FILE}"\n')
    storage.write_text(place / "main.c", _PROGRAM.replace("@P", prefix).replace("@p", prefix.lower()))


def _link(board: Board, place: str, stack: int, more: tuple[str, ...]) -> bytes:
    """The program with so much stack; `more` with an entry at 0 leaves all out that the policy does not need."""
    words = _LINK.replace("KEEP(*(.begin))", "") if more else _LINK
    room = {"@flash": board.flash[0], "@ram": board.ram[0], "@stack": stack, "@length": 2**28}
    for word, value in room.items():
        words = words.replace(word, hex(value))
    storage.write_text(Path(place) / "board.ld", words)
    options = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-T",
        "board.ld",
        "-Wl,--gc-sections",
        "-Wl,--no-warn-rwx-segments",
    ]
    _run(
        [board.gcc, *board.flags, *options, *more, "main.o", "policy.o", "-lm", "-lc", "-lgcc", "-o", "policy.elf"],
        place,
    )
    return (Path(place) / "policy.elf").read_bytes()


def _sizes(elf: bytes) -> tuple[int, int]:
    """(flash, RAM) bytes from the section table of a 32-bit little-endian ELF."""
    (table,) = struct.unpack_from("<I", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 46)
    flash = static = 0
    for i in range(count):
        kind, flags, _, _, length = struct.unpack_from("<IIIII", elf, table + i * size + 4)
        if flags & 2:  # it takes memory
            filled, written = kind != 8, bool(flags & 1)  # 8: no bits in the file
            flash += length if filled else 0
            static += length if written else 0
    return flash, static


def _check_fits(what: str, needed: int, there: int) -> None:
    if needed > there:
        raise DoesNotFit(f"does not fit: {needed:,} bytes of {what}, {there:,} are there. Take a smaller or quantised student.")  # fmt: skip


def _run(command: list[str], place: str | None = None) -> str:
    """What a program prints; its first error becomes an InputError."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed programs, arguments are ours
            command, cwd=place, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{command[0]} did not finish: {printable(error)}. Install it again.") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise InputError(
            f"{command[0]} refused the policy: {printable((lines or ['no message'])[0])}. Export it again."
        )
    return done.stdout
