"""The folder is one of diffusers' own: it opens where there is no diffusion_core."""

import subprocess
import sys

from diffusion_core.text_to_image import POCKET

PROGRAM = """
import sys

class Hidden:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "diffusion_core":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
image = pipe("a red star", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
image.save("star.png")
try:
    import diffusion_core
except ModuleNotFoundError:
    print(type(pipe).__name__, image.size)
"""


def test_the_shipped_folder_paints_in_plain_diffusers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(POCKET)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "StableDiffusionPipeline (32, 32)\n", done.stderr
    assert (tmp_path / "star.png").stat().st_size > 100
