"""Three ways to do the same thing: our code, lucidrains' and diffusers', each as a contender with a training step, a sampling
step and an EpsModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.ddpm import ddpm_step, eps_loss
from diffusion_core.networks import UNet
from diffusion_core.prediction import EpsModel
from diffusion_core.schedules import NoiseSchedule, make_schedule
from diffusion_core.training import RECIPES

SIZE = 32  # MNIST padded to 32 x 32: every one of the three nets accepts it


@dataclass
class Contender:
    """One library's way.

    net: what is trained; loss(x_0) -> scalar, x_0 (B, 1, 32, 32) in [-1, 1]; sample_step(x_t, t) -> x_{t-1};
    eps_model: for sampling all of them with one sampler; adam: the arguments of its usual optimizer.
    """

    name: str
    net: nn.Module
    loss: Callable[[Tensor], Tensor]
    sample_step: Callable[[Tensor, int], Tensor]
    eps_model: EpsModel
    adam: dict


class _Plain(nn.Module):
    """Our net behind the interface that lucidrains' GaussianDiffusion asks of a model."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        self.net = net
        self.channels = self.out_dim = net.channels
        self.self_condition = False
        self.random_or_learned_sinusoidal_cond = False

    def forward(self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return self.net(x, t + 1)


def our_net(classes: int | None = None) -> UNet:
    """The net of the mnist recipe, by default without labels, as the others have none."""
    return UNet(**RECIPES["mnist"].net | {"classes": classes})


def lucidrains_net() -> nn.Module:
    """The net of the library's README: Unet(dim = 64, dim_mults = (1, 2, 4, 8)), for one channel."""
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=1)


def diffusers_net() -> nn.Module:
    """The net that the Hugging Face course builds for MNIST: two layers a block, 32-64-64 channels, attention below the top."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def ours(net: nn.Module, call: EpsModel, name: str = "ours") -> Contender:
    """A net in our loss and our step."""
    schedule = make_schedule("linear")

    def loss(x_0: Tensor) -> Tensor:
        t = torch.randint(1, schedule.T + 1, (len(x_0),))
        return eps_loss(call, x_0, t, torch.randn_like(x_0), schedule).mean()

    def sample_step(x_t: Tensor, t: int) -> Tensor:
        eps = call(x_t, torch.full((len(x_t),), t, device=x_t.device))
        return ddpm_step(eps, x_t, t, t - 1, torch.randn_like(x_t), schedule)

    return Contender(name, net, loss, sample_step, call, RECIPES_ADAM)


RECIPES_ADAM = {"lr": RECIPES["mnist"].config.lr, "betas": RECIPES["mnist"].config.betas}


def lucidrains(net: nn.Module, name: str = "lucidrains") -> Contender:
    """A net in GaussianDiffusion as it is shipped, but predicting the noise on the linear schedule, like the other two."""
    from denoising_diffusion_pytorch import GaussianDiffusion

    diffusion = GaussianDiffusion(
        net, image_size=SIZE, timesteps=1000, objective="pred_noise", beta_schedule="linear"
    )

    def loss(x_0: Tensor) -> Tensor:
        return diffusion((x_0 + 1) / 2)  # it scales [0, 1] to [-1, 1] itself

    def sample_step(x_t: Tensor, t: int) -> Tensor:
        return diffusion.p_sample(x_t, t - 1)[0]

    # the Trainer's default optimizer
    adam = {"lr": 1e-4, "betas": (0.9, 0.99)}
    return Contender(
        name, diffusion, loss, sample_step, lambda x, t: net(x, t.to(x.device) - 1), adam
    )


def diffusers(net: nn.Module, call: EpsModel, name: str = "diffusers") -> Contender:
    """A net in the training loop and the scheduler of the library's tutorial. call(x, index) takes diffusers' index t - 1."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=1000)

    def loss(x_0: Tensor) -> Tensor:
        noise = torch.randn_like(x_0)
        index = torch.randint(0, 1000, (len(x_0),), device=x_0.device, dtype=torch.int64)
        return F.mse_loss(call(scheduler.add_noise(x_0, noise, index), index), noise)

    def sample_step(x_t: Tensor, t: int) -> Tensor:
        index = torch.full((len(x_t),), t - 1, device=x_t.device)
        return scheduler.step(call(x_t, index), t - 1, x_t).prev_sample

    return Contender(
        name, net, loss, sample_step, lambda x, t: call(x, t.to(x.device) - 1), {"lr": 1e-4}
    )  # of the tutorial


def same_net(which: str) -> list[Contender]:
    """Table (a): one net, three libraries around it, so that only the libraries differ. which: whose net."""
    torch.manual_seed(0)
    if which == "ours":
        net = our_net()
        plain = _Plain(net)
        return [ours(net, net), lucidrains(plain), diffusers(net, lambda x, i: net(x, i + 1))]
    if which == "lucidrains":
        net = lucidrains_net()
        return [ours(net, lambda x, t: net(x, t.to(x.device) - 1)), lucidrains(net)]
    net = diffusers_net()
    return [
        ours(net, lambda x, t: net(x, t.to(x.device) - 1).sample),
        diffusers(net, lambda x, i: net(x, i).sample),
    ]


def recipes() -> list[Contender]:
    """Tables (b) and (c): each library with the net that its own documentation builds for images of this size."""
    torch.manual_seed(0)
    net, theirs = our_net(), diffusers_net()
    return [
        ours(net, net),
        lucidrains(lucidrains_net()),
        diffusers(theirs, lambda x, i: theirs(x, i).sample),
    ]


def schedule_of_all() -> NoiseSchedule:
    """The linear schedule, which all contenders share."""
    return make_schedule("linear")
