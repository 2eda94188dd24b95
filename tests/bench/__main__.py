"""``make bench``: every benchmark, or those that are named: ``python -m tests.bench first_pass append``."""

from __future__ import annotations

import compileall
import importlib
import sys
from pathlib import Path

import distilld


def names() -> list[str]:
    """The benchmarks there are, by the names of their modules."""
    return sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main(wanted: list[str]) -> int:
    """Run benchmarks one after the other; a name that there is not is an error."""
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 2
    # As 'make install' does it; workers and commands would else be compiled at each of their starts.
    compileall.compile_dir(Path(distilld.__file__).parent, quiet=1)
    for name in wanted or names():
        importlib.import_module(f"tests.bench.bench_{name}").main()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
