"""To diffusers and back: the index, the round trip, one step and a whole chain, and what is
refused."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddpm import ddpm_sample, ddpm_step, q_sample
from diffusion_core.guidance import classifier_free_guidance
from diffusion_core.interop import (
    from_diffusers,
    schedule_from,
    scheduler_from,
    text_net,
    to_diffusers,
)
from diffusion_core.networks import UNet
from diffusion_core.prediction import clip_x0, eps_from_v, predict_v
from diffusion_core.sampling import last
from diffusion_core.schedules import NoiseSchedule, cosine_betas, linear_betas, timesteps
from tests.conftest import normal

F64 = torch.float64


def small_net() -> UNet:
    torch.manual_seed(0)
    net = UNet(width=8, multipliers=(1, 2), attention=(False, True), classes=3, emb_dim=16)
    for parameter in net.parameters():  # so that its output is not 0
        torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


def small_unet2d(**settings):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **settings,
    ).eval()


class Recorder:
    """A model that remembers how it was called."""

    def __call__(self, x, t, *labels, **named):
        self.t, self.labels, self.named = t, labels, named
        return x


# --- the index ---


@pytest.mark.parametrize("t", [1, 1000, torch.tensor(7), torch.tensor([3, 1000])])
def test_their_timestep_is_t_minus_1(t):
    recorder = Recorder()
    from_diffusers(lambda x, t: SimpleNamespace(sample=recorder(x, t)))(torch.zeros(2, 3), t)
    assert recorder.t.tolist() == (torch.as_tensor(t).expand(2) - 1).tolist()
    assert recorder.t.dtype == torch.int64


@pytest.mark.parametrize("timestep", [0, 999, torch.tensor(7), torch.tensor([0, 999])])
def test_our_t_is_their_timestep_plus_1(timestep):
    recorder = Recorder()
    to_diffusers(recorder)(torch.zeros(2, 3), timestep)
    assert recorder.t.tolist() == (torch.as_tensor(timestep).expand(2) + 1).tolist()
    assert recorder.t.dtype == torch.int64
    assert recorder.labels == ()


def test_real_times_stay_real():
    recorder = Recorder()
    from_diffusers(lambda x, t: SimpleNamespace(sample=recorder(x, t)))(torch.zeros(2, 3), 3.25)
    assert recorder.t.tolist() == [2.25, 2.25]
    to_diffusers(recorder)(torch.zeros(2, 3), torch.tensor([0.5, 1.0]))
    assert recorder.t.tolist() == [1.5, 2.0]


def test_round_trips_change_nothing():
    net, x, t = small_net(), torch.randn(2, 1, 8, 8), torch.tensor([1, 1000])
    y = torch.tensor([0, 2])
    there_and_back = from_diffusers(to_diffusers(net))
    assert_close(there_and_back(x, t), net(x, t), rtol=0, atol=0)
    assert_close(there_and_back(x, t, y), net(x, t, y), rtol=0, atol=0)
    unet = small_unet2d()
    back_and_there = to_diffusers(from_diffusers(unet))
    assert_close(back_and_there(x, t - 1).sample, unet(x, t - 1).sample, rtol=0, atol=0)
    assert (unet(x, t - 1).sample - unet(x, t).sample).abs().max() > 1e-6


def test_labels_are_handed_on():
    recorder, y = Recorder(), torch.tensor([4, 5])
    to_diffusers(recorder)(torch.zeros(2, 3), 0, class_labels=y)
    assert recorder.labels[0] is y
    net = from_diffusers(lambda x, t, **named: SimpleNamespace(sample=recorder(x, t, **named)))
    net(torch.zeros(2, 3), 1, y)
    assert recorder.named["class_labels"] is y
    net(torch.zeros(2, 3), 1)
    assert recorder.named == {}


def test_their_unet_keeps_its_parameters_and_its_gradient():
    unet = small_unet2d()
    net = from_diffusers(unet)
    assert list(net.parameters()) == list(unet.parameters())
    net(torch.randn(2, 1, 8, 8), torch.tensor([1, 5])).square().mean().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_output_has_the_form_of_theirs():
    unet, x = to_diffusers(small_net(), sample_size=8), torch.randn(2, 1, 8, 8)
    assert_close(unet(x, 3, return_dict=False)[0], unet(x, 3).sample, rtol=0, atol=0)
    assert unet.config.sample_size == 8
    assert unet.config.in_channels == unet.config.out_channels == 1
    assert (unet.dtype, unet.device.type) == (torch.float32, "cpu")
    assert to_diffusers(Recorder()).to(F64).dtype == F64
    assert to_diffusers(small_net()).to(torch.bfloat16).dtype == torch.bfloat16


# --- schedules ---


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(50)], ids=["linear", "cosine"])
def test_schedules_go_there_and_back(betas):
    schedule = NoiseSchedule.from_betas(betas)
    scheduler = scheduler_from(schedule)
    assert scheduler.config.num_train_timesteps == schedule.T
    assert_close(scheduler.betas.double(), betas.float().double(), rtol=0, atol=1e-7)
    back = schedule_from(scheduler)
    assert_close(
        back.alpha_bar.log(), schedule.alpha_bar.log(), rtol=0, atol=2e-4
    )  # 1 - 0.999 in float32
    x, eps, t = normal(4, 5), normal(4, 5, seed=1), torch.tensor([1, 2, 20, schedule.T])
    assert_close(
        scheduler.add_noise(x, eps, t - 1), q_sample(x, t, eps, schedule), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_a_step_of_the_scheduler_is_ours(linear, variance):
    """In float64, with our table in theirs, so that nothing but the formula is compared."""
    scheduler = in_float64(scheduler_from(linear, variance=variance), linear)
    for t in (1, 2, 3, 500, 1000):
        x, eps = normal(3, 4), normal(3, 4, seed=1)
        theirs = scheduler.step(eps, t - 1, x, generator=torch.Generator().manual_seed(7))
        noise = torch.randn(3, 4, generator=torch.Generator().manual_seed(7), dtype=F64)
        assert_close(
            theirs.prev_sample,
            ddpm_step(eps, x, t, t - 1, noise, linear, variance),
            rtol=0,
            atol=1e-9,
        )


@pytest.mark.parametrize("clip", [False, True])
def test_the_pipeline_walks_our_chain(linear, mixture, clip):
    from diffusers import DDPMPipeline

    def image_model(x, t):
        return mixture.eps_model(linear)(x.flatten(1), t).reshape(x.shape)

    model = clip_x0(image_model, linear) if clip else image_model
    unet = to_diffusers(image_model, sample_size=(1, 2), channels=1).to(F64)
    pipeline = DDPMPipeline(unet, in_float64(scheduler_from(linear, clip=clip), linear))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        5, torch.Generator().manual_seed(3), num_inference_steps=25, output_type="np"
    ).images
    g = torch.Generator().manual_seed(3)
    x_T = torch.randn(5, 1, 1, 2, generator=g, dtype=F64)
    ours = last(ddpm_sample(model, x_T, timesteps(1000, 25), linear, generator=g))
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert_close(torch.from_numpy(theirs), ours, rtol=0, atol=1e-8)


def in_float64(scheduler, schedule):
    scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
    scheduler.one = torch.tensor(1.0, dtype=F64)
    return scheduler


# --- what is refused ---


def test_times_and_shapes_that_do_not_fit():
    net = from_diffusers(lambda x, t: SimpleNamespace(sample=x))
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"t = 0 is outside its domain 1 <= t"):
        net(x, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"t has shape \(3,\)"):
        net(x, torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match="cannot hold"):
        net(x, torch.tensor([1.0, 2.0], dtype=torch.float16))
    unet = to_diffusers(lambda x, t: x)
    with pytest.raises(ValueError, match=r"timestep = -1 is outside"):
        unet(x, -1)
    with pytest.raises(ValueError, match=r"timestep has shape \(3,\)"):
        unet(x, torch.tensor([1, 2, 3]))


def test_outputs_that_do_not_fit():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(TypeError, match=r"returned Tensor, expected an output with a tensor"):
        from_diffusers(lambda x, t: x)(x, 1)
    with pytest.raises(TypeError, match=r"returned tuple"):
        from_diffusers(lambda x, t: (x,))(x, 1)
    with pytest.raises(
        ValueError, match=r"the UNet's sample \(2, 2, 4, 4\) and x_t \(2, 1, 4, 4\)"
    ):
        from_diffusers(lambda x, t: SimpleNamespace(sample=torch.cat([x, x], 1)))(x, 1)
    with pytest.raises(TypeError, match="unet is a int"):
        from_diffusers(3)
    with pytest.raises(TypeError, match="eps_model is a int"):
        to_diffusers(3)


def test_sizes_a_pipeline_needs():
    with pytest.raises(ValueError, match=r"sample_size = None, channels = 1: a pipeline asks"):
        _ = to_diffusers(small_net()).config
    with pytest.raises(ValueError, match=r"channels = None"):
        _ = to_diffusers(lambda x, t: x, sample_size=8).config


def test_settings_and_schedules_that_are_refused(linear):
    from diffusers import DDPMScheduler

    with pytest.raises(ValueError, match="variance = 'fixed_small' is unknown"):
        scheduler_from(linear, variance="fixed_small")
    with pytest.raises(ValueError, match="spacing = 'quadratic' is unknown"):
        scheduler_from(linear, spacing="quadratic")
    with pytest.raises(TypeError, match="int has no tensor `betas`"):
        schedule_from(3)
    with pytest.raises(ValueError, match="beta_1000 = 1"):
        schedule_from(DDPMScheduler(rescale_betas_zero_snr=True))


def test_without_diffusers_the_error_says_what_to_install(linear, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install diffusers, or .* extra \[compare\]"):
        scheduler_from(linear)


def test_the_module_does_not_import_diffusers():
    code = "import sys, diffusion_core.interop; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- nets that read text ---


class Reader:
    """A U-Net of a pipeline that remembers how it was called, and says what it is told to."""

    def __init__(self, says):
        self.says = says

    def __call__(self, x, timestep, encoder_hidden_states):
        self.timestep, self.text = timestep, encoder_hidden_states
        return SimpleNamespace(sample=self.says(x))


def scheduler_of(linear, kind):
    return SimpleNamespace(betas=linear.betas, config=SimpleNamespace(prediction_type=kind))


def test_a_text_net_asks_at_t_minus_1_with_the_text(linear):
    unet, text = Reader(torch.zeros_like), normal(2, 5, 3, seed=2)
    text_net(unet, scheduler_of(linear, "epsilon"))(normal(2, 4), torch.tensor([1, 1000]), text)
    assert unet.timestep.tolist() == [0, 999] and unet.timestep.dtype == torch.int64
    assert unet.text is text


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_text_net_returns_the_noise_whatever_the_unet_predicts(linear, kind):
    x_0, eps, t = normal(3, 4), normal(3, 4, seed=1), torch.tensor([1, 500, 1000])
    said = {"epsilon": eps, "v_prediction": predict_v(x_0, eps, t, linear), "sample": x_0}[kind]
    net = text_net(Reader(lambda x: said), scheduler_of(linear, kind))
    found = net(q_sample(x_0, t, eps, linear), t, normal(3, 5, 3))
    assert_close(found, eps, rtol=0, atol=1e-9)


def test_guidance_of_v_is_guidance_of_eps(linear):
    """The change from v to eps is linear in v, and the weights of guidance sum to 1."""
    y, null, x = normal(2, 5, 3), normal(5, 3, seed=4), normal(2, 4)
    unet = lambda x, timestep, encoder_hidden_states: SimpleNamespace(
        sample=x * encoder_hidden_states.mean((1, 2))[:, None]
    )
    net, t = text_net(unet, scheduler_of(linear, "v_prediction")), torch.full((2,), 300)
    v_y, v_null = x * y.mean((1, 2))[:, None], x * null.mean()
    by_v = eps_from_v(v_null + 3.0 * (v_y - v_null), x, t, linear)
    assert_close(classifier_free_guidance(net, y, null, 3.0)(x, t), by_v, rtol=0, atol=1e-12)


def test_a_text_net_refuses_what_it_does_not_know(linear):
    with pytest.raises(ValueError, match="prediction_type = 'flow' is unknown"):
        text_net(Reader(torch.zeros_like), scheduler_of(linear, "flow"))
    net = text_net(Reader(lambda x: x[:, :1]), scheduler_of(linear, "epsilon"))
    with pytest.raises(ValueError, match="the UNet's sample"):
        net(normal(2, 4), 5, normal(2, 5, 3))
    with pytest.raises(ValueError):
        net(normal(2, 4), 0, normal(2, 5, 3))
