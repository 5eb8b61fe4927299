"""The settings that every run of a chapter shares."""

import os

from tools.layout import ROOT


def kernel_environment():
    """The environment in which chapters run, when they are executed and when they are tested.

    No GPU and two threads (unless the caller's environment says how many), as on the machine the book promises; no progress
    bars, which no two runs draw alike.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        # a waiting thread spins for a moment, then sleeps: spinning for long makes small operations 100 times slower on a busy
        # machine, and not spinning at all makes them twice as slow on a quiet one
        "GOMP_SPINCOUNT": "10000",
        "MKL_NUM_THREADS": threads,
        "TQDM_DISABLE": "1",
        "PYTHONHASHSEED": "0",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
