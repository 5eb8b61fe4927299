"""Training of any net(x, t, y): configuration, loop, moving average, checkpoints, recipes."""

from diffusion_core.training.average import (
    EMA,
)
from diffusion_core.training.batches import (
    Batch,
    draw_batch,
    p2_weights,
)
from diffusion_core.training.checkpoints import (
    CHECKPOINT,
    RunState,
    load_checkpoint,
    save_checkpoint,
    steps_done,
)
from diffusion_core.training.classifier import (
    train_classifier,
)
from diffusion_core.training.config import (
    Precision,
    TrainConfig,
    generator_of_step,
    lr_at,
    resolve_precision,
    run_settings,
)
from diffusion_core.training.fit import (
    fit,
)
from diffusion_core.training.loop import (
    TrainResult,
    elapsed,
    train,
)
from diffusion_core.training.processes import (
    is_main,
)
from diffusion_core.training.recipes import (
    RECIPES,
    Recipe,
)
from diffusion_core.training.stopping import (
    NanLoss,
)
from diffusion_core.training.validation import (
    validation_loss,
)

__all__ = [
    "CHECKPOINT",
    "EMA",
    "RECIPES",
    "Batch",
    "NanLoss",
    "Precision",
    "Recipe",
    "RunState",
    "TrainConfig",
    "TrainResult",
    "draw_batch",
    "elapsed",
    "fit",
    "generator_of_step",
    "is_main",
    "load_checkpoint",
    "lr_at",
    "p2_weights",
    "resolve_precision",
    "run_settings",
    "save_checkpoint",
    "steps_done",
    "train",
    "train_classifier",
    "validation_loss",
]
