"""Limit of the CPU: fused multiply-adds in float32 by registers alone, in C (fma.c), since no library reaches it."""

import platform
import subprocess
from pathlib import Path

import torch

from app.process.cpu import available_cpus
from benchmarks.measure import Case

_SOURCE = Path(__file__).with_name("fma.c")
_COMPILE = ("cc", "-O2", "-march=native", "-pthread")
_TRIES = 6
_TRY_S = 0.05


class NoFmaError(Exception):
    """The program cannot be compiled here; the message says why."""


def cases(directory: Path) -> tuple[list[Case], str]:
    """Return measurements of one core and of all, and a note that says why there are none. On a GPU they limit nothing.

    Args:
        directory: where the compiled program is kept.
    """
    if torch.cuda.is_available():
        return [], ""
    try:
        program = compiled(directory)
    except NoFmaError as error:
        return [], f"the limit of fused multiply-adds is left out: {error}"
    every = available_cpus()
    return [
        ("fused multiply-add of one core, FLOP/s", lambda: flops(program, 1)),
        (f"fused multiply-add of all {every} cores, FLOP/s", lambda: flops(program, every)),
    ], ""


def compiled(directory: Path, command: tuple[str, ...] = _COMPILE) -> Path:
    """Compile the program for this machine, and return it.

    Raises:
        NoFmaError: there is no C compiler, or it cannot compile it.
    """
    if platform.system() != "Linux":
        raise NoFmaError("it is measured on Linux alone")
    program = directory / "fma"
    directory.mkdir(parents=True, exist_ok=True)
    try:
        # always, as the directory may have come from another machine
        done = subprocess.run([*command, str(_SOURCE), "-o", str(program)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoFmaError(f"no C compiler ({command[0]})") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason given"]
        raise NoFmaError(f"{command[0]}: {errors[0].strip()}")
    return program


def flops(program: Path, threads: int) -> float:
    """Measure FLOP/s of so many threads at once, the best of six tries, as the least disturbed one."""
    return max(_try(program, threads) for _ in range(_TRIES))


def _try(program: Path, threads: int) -> float:
    done = subprocess.run([str(program), str(threads), str(_TRY_S)], capture_output=True, text=True, check=True)
    return parsed(done.stdout)


def parsed(line: str) -> float:
    """Return FLOP/s from what the program prints: operations and seconds.

    Raises:
        ValueError: it is something else.
    """
    operations, seconds = (float(number) for number in line.split())
    if operations <= 0 or seconds <= 0:
        raise ValueError(f"no work or no time: {line!r}")
    return operations / seconds
