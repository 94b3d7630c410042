"""How every command starts and ends: flags before heavy imports, one sentence for bad input.

Exit status: 0 done, 1 some of several files failed, 2 bad input or configuration, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from absl import flags


def run(main: Callable[[], int | None]) -> None:
    """Parse the flags, run ``main`` and exit; a bad input becomes one sentence on stderr."""
    if {"--help", "-h", "-help", "--helpfull"} & set(sys.argv[1:]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        print("\nOptions:" + flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}; options are written --name=value")
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError, OSError) as error:
        fail(f"{_sentence(error)} (see --help)")
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # of tolerances without result
    _use_huge_pages()
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError) as error:
        fail(_sentence(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _use_huge_pages() -> None:
    """Start again with huge pages for temporaries where the C library offers them (glibc 2.35).

    First use of memory is then not what elementwise operations spend their time on: the same work
    takes 1.2 to 1.7 times less on a CPU. It is read when a process starts, hence the new start,
    before anything is loaded; whoever sets ``GLIBC_TUNABLES`` decides.
    """
    line = sys.orig_argv
    is_command = "-m" in line and line[line.index("-m") + 1].startswith("launch.")
    if is_command and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        sys.stdout.flush()
        os.execv(sys.executable, line)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield ``say(text)``, which names the stage that begins on stderr, with the seconds so far.

    On a terminal the last line counts on while the stage lasts; the first one is the start itself.
    """
    live, over, lock = sys.stderr.isatty(), threading.Event(), threading.Lock()
    start, stage = time.perf_counter(), "starting" if live else ""

    def line() -> str:
        return f"{time.perf_counter() - start:5.0f} s  {stage}"

    def say(text: str) -> None:
        nonlocal stage
        with lock:
            before, stage = stage, text
            print(("\n" if live and before else "") + line(), end="" if live else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip

    def count() -> None:
        while not over.wait(1.0):
            with lock:
                if stage:
                    print("\r" + line(), end="", file=sys.stderr, flush=True)

    counter = threading.Thread(target=count, daemon=True)
    if live:
        counter.start()
    try:
        yield say
    finally:
        over.set()
        if live:
            counter.join()
            print("\n" if stage else "", end="", file=sys.stderr, flush=True)


def fail(message: str) -> None:
    """Print ``error: message`` on stderr and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # config_flags puts one into its message
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())
