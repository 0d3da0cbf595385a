"""Run every benchmark: `python -m benchmarks [NAME ...]`, results in results/benchmarks/."""

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Run the named benchmarks, or all of them, one after the other."""
    known = sorted(p.stem for p in HERE.glob("[!_]*.py"))
    chosen = sys.argv[1:] or known
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"no benchmark named {', '.join(unknown)}; there are {', '.join(known)}.")
        return 2
    sys.path.insert(0, str(HERE))
    for name in chosen:
        print(f"== {name}", flush=True)
        sys.argv = [name]
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
