"""Do the chapters hold on other processors? `python -m tools.processors [CHAPTER.ipynb ...]` (`make processors`).

An x86 processor can imitate an older one: PyTorch and oneDNN then leave its newer instructions alone, and sums are rounded in another
order. Each chapter (default: all) runs on every processor of PROCESSORS and is compared with its stored outputs, as by `make test`.
"""

import os
import subprocess
import sys

from tools import layout

PROCESSORS = {
    f"{capability}, {threads} thread{'s' * (threads > 1)}": {
        "ATEN_CPU_CAPABILITY": capability,
        "ONEDNN_MAX_CPU_ISA": instructions,
        "OMP_NUM_THREADS": str(threads),
    }
    for capability, instructions in (("default", "SSE41"), ("avx2", "AVX2"))
    for threads in (1, 4)
}


def main():
    chapters = sys.argv[1:] or [str(path) for path in layout.chapters()]
    failed = []
    for name, environment in PROCESSORS.items():
        print(f"=== {name}", flush=True)
        command = [sys.executable, "-m", "tools.verify", *chapters]
        if subprocess.run(command, env={**os.environ, **environment}).returncode:
            failed.append(name)
    sys.exit(f"not on: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
