"""python -m diffusion_core train | sample | evaluate | paint: `--help` after each says more."""

from __future__ import annotations

import io
import sys

from diffusion_core._validate import UsageError


def main(argv: list[str] | None = None) -> int:
    """Run one command. Errors of use are one line on standard error and exit status 2; Ctrl-C is
    one line and 130; a bug keeps its traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a code page may lack letters of ours
        sys.stdout.reconfigure(errors="replace")
    try:
        from diffusion_core.cli import run  # PyTorch takes seconds, and Ctrl-C may come in them

        run(argv)
    except (UsageError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' if str(stop) else ''}{stop}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
