"""Guidance, by Bayes' rule on exact mixtures, and by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from diffusion_core.ddim import ddim_sample
from diffusion_core.exact import GaussianMixture
from diffusion_core.guidance import (
    classifier_free_guidance,
    classifier_guidance,
    clip_guidance,
    condition,
    drop_labels,
    guidance_interval,
    rescale_guidance,
)
from diffusion_core.networks import UNet
from diffusion_core.prediction import clip_x0, predict_x0
from diffusion_core.sampling import last
from diffusion_core.schedules import timesteps
from tests.conftest import normal

F64 = torch.float64
T = torch.tensor([1, 40, 300, 700, 1000])


class ExactNet:
    """A mixture as a net with labels: y = k asks for component k, the null label 3 for all of
    them. It counts its calls and remembers the last."""

    classes = null_label = 3

    def __init__(self, mixture, schedule):
        self.models = [mixture.eps_model(schedule, k) for k in (0, 1, 2, None)]
        self.calls = []

    def __call__(self, x, t, y):
        self.calls.append((x, t, y))
        return torch.cat([self.models[int(y[i])](x[i : i + 1], t[i]) for i in range(len(x))])


@pytest.fixture
def net(mixture, linear):
    return ExactNet(mixture, linear)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = UNet(width=16, multipliers=(1, 2), attention=(False, True), classes=4)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return unet.double()


Y = torch.tensor([0, 1, 2, 1, 0])


# --- condition ---


def test_condition_asks_for_its_labels(net, mixture, linear):
    x = normal(5, 2)
    eps = condition(net, Y)(x, T)
    for i in range(5):
        assert_close(
            eps[i : i + 1], mixture.eps_model(linear, int(Y[i]))(x[i : i + 1], T[i]), rtol=0, atol=0
        )
    seen = []

    def net(x, t, y):
        seen.append((x, t, y))
        return x.double()

    assert condition(net, None)(x, T).dtype == x.dtype
    assert condition(net, None)(x.float(), T).dtype == torch.float32
    assert seen[0][0] is x
    assert seen[0][1] is T
    assert seen[0][2] is None


def test_condition_takes_captions_too(linear):
    captions = torch.arange(10).reshape(5, 2)
    eps = condition(lambda x, t, y: x + y, captions)(normal(5, 2), T)
    assert_close(eps, normal(5, 2) + captions, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        condition,
        lambda net, y: classifier_free_guidance(net, y, 3, 2.0),
        lambda net, y: classifier_free_guidance(net, y, 3, 0.0),
    ],
)
def test_labels_that_do_not_fit_are_refused(net, wrap):
    with pytest.raises(ValueError, match="4 labels for a batch of 5 images"):
        wrap(net, Y[:4])(normal(5, 2), T)
    for wrong in (-1, 4):
        with pytest.raises(
            ValueError, match=rf"label {wrong} is out of range: 0\.\.2, or 3 for the null label"
        ):
            wrap(net, torch.tensor([0, wrong]))
    assert net.calls == []


def test_no_label_is_a_label_too(unet):
    x, t = normal(2, 1, 8, 8), torch.tensor([5, 9])
    assert_close(condition(unet, None)(x, t), unet(x, t), rtol=0, atol=0)


def test_a_net_without_classes_is_refused():
    net = UNet(width=16, multipliers=(1,), attention=(False,))
    with pytest.raises(ValueError, match="built without classes"):
        condition(net, Y)
    with pytest.raises(ValueError, match="built without classes"):
        classifier_free_guidance(net, Y, 3, 2.0)
    with pytest.raises(ValueError, match="no null label"):
        classifier_free_guidance(net, Y, None, 2.0)
    with pytest.raises(ValueError, match="no null_label of its own"):
        classifier_free_guidance(lambda x, t, y: x, Y, None, 2.0)


# --- drop_labels ---


def test_labels_are_dropped_each_by_itself():
    n, p = 20_000, 0.15
    y = torch.arange(n) % 7
    before = y.clone()
    dropped = drop_labels(y, 7, p, generator=torch.Generator().manual_seed(0))
    gone = dropped == 7
    assert torch.equal(y, before)
    assert torch.equal(dropped[~gone], y[~gone])
    error = math.sqrt(p * (1 - p) / n)
    assert abs(gone.double().mean().item() - p) < 4 * error
    pairs = (gone[1:] & gone[:-1]).double().mean().item()  # neighbours know nothing of each other
    assert abs(pairs - p**2) < 4 * math.sqrt(p**2 / n)


def test_dropping_none_and_all():
    y = torch.arange(5)
    assert torch.equal(drop_labels(y, 9, 0.0), y)
    assert torch.equal(drop_labels(y, 9, 1.0), torch.full((5,), 9))
    assert drop_labels(y, 9, 1.0).dtype == torch.int64
    assert drop_labels(torch.empty(0, dtype=torch.long), 9, 0.5).shape == (0,)


def test_dropping_follows_the_generator():
    y = torch.arange(50)
    seeded = torch.Generator().manual_seed(4)
    u = torch.rand(50, generator=torch.Generator().manual_seed(4))
    assert torch.equal(drop_labels(y, 99, 0.3, generator=seeded), torch.where(u < 0.3, 99, y))
    torch.manual_seed(4)
    assert torch.equal(drop_labels(y, 99, 0.3), torch.where(u < 0.3, 99, y))


def test_dropping_with_a_generator_for_each_sample():
    y = torch.arange(6)
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    together = drop_labels(y, 99, 0.5, generator=generators)
    for i in range(6):
        alone = drop_labels(y[i : i + 1], 99, 0.5, generator=[torch.Generator().manual_seed(i)])
        assert together[i] == alone[0]
    assert 0 < (together == 99).sum() < 6
    with pytest.raises(ValueError, match="2 generators for a batch of 6"):
        drop_labels(y, 99, 0.5, generator=generators[:2])


def test_whole_captions_are_dropped():
    y = torch.arange(40).reshape(20, 2)
    null = torch.tensor([-1, -2])
    dropped = drop_labels(y, null, 0.5, generator=torch.Generator().manual_seed(0))
    gone = (dropped == null).all(1)
    assert 0 < gone.sum() < 20
    assert torch.equal(dropped[~gone], y[~gone])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(p):
    with pytest.raises(ValueError, match=rf"p = {p} must lie in 0\.\.1"):
        drop_labels(Y, 3, p)


# --- classifier-free guidance ---


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_free_guidance_is_bayes_rule(net, mixture, linear, scale):
    """The guided score is that of p(x) p(y | x)^gamma: the classifier's gradient, scale times."""
    x = normal(5, 2)
    eps = classifier_free_guidance(net, Y, 3, scale)(x, T)
    for k in range(3):
        rows = torch.eq(Y, k)
        posterior = mixture.log_posterior(linear, k)
        wanted = classifier_guidance(mixture.eps_model(linear), posterior, linear, scale)(x, T)
        assert_close(eps[rows], wanted[rows], rtol=0, atol=1e-10)


def test_free_guidance_is_w_and_gamma(net, mixture, linear):
    """Ho & Salimans' (1 + w) eps(y) - w eps(null), with w = gamma - 1."""
    x, w = normal(5, 2), 1.5
    eps_y, eps_null = condition(net, Y)(x, T), mixture.eps_model(linear)(x, T)
    assert_close(
        classifier_free_guidance(net, Y, 3, 1 + w)(x, T),
        (1 + w) * eps_y - w * eps_null,
        rtol=0,
        atol=1e-12,
    )


def test_free_guidance_is_linear_in_gamma(net):
    x = normal(5, 2)
    eps = {gamma: classifier_free_guidance(net, Y, 3, gamma)(x, T) for gamma in (0, 1, 3, 5, 7)}
    assert_close(eps[3] - eps[1], eps[7] - eps[5], rtol=0, atol=1e-12)
    assert_close(eps[3], eps[0] + 3 * (eps[1] - eps[0]), rtol=0, atol=1e-12)


def test_scales_0_and_1_need_one_prediction(net, mixture, linear):
    x = normal(5, 2)
    assert_close(
        classifier_free_guidance(net, Y, 3, 0.0)(x, T),
        mixture.eps_model(linear)(x, T),
        rtol=0,
        atol=0,
    )
    assert_close(
        classifier_free_guidance(net, Y, 3, 1.0)(x, T), condition(net, Y)(x, T), rtol=0, atol=0
    )
    assert [len(call[0]) for call in net.calls] == [5, 5, 5]


def test_both_predictions_come_from_one_call(net):
    x = normal(5, 2)
    classifier_free_guidance(net, Y, 3, 2.0)(x, T)
    assert len(net.calls) == 1
    seen_x, seen_t, seen_y = net.calls[0]
    assert torch.equal(seen_x, torch.cat([x, x]))
    assert torch.equal(seen_t, torch.cat([T, T]))
    assert sorted(seen_y.tolist()) == sorted([*Y.tolist(), 3, 3, 3, 3, 3])


def test_one_call_of_a_real_net_equals_two(unet):
    x, y, t = normal(3, 1, 8, 8), torch.tensor([0, 3, 1]), torch.tensor([1, 500, 1000])
    with torch.no_grad():
        eps_y, eps_null = unet(x, t, y), unet(x, t)
        assert (eps_y - eps_null).abs().max() > 1e-3
        assert_close(
            classifier_free_guidance(unet, y, None, 3.0)(x, t),
            eps_null + 3 * (eps_y - eps_null),
            rtol=0,
            atol=1e-12,
        )
        assert_close(
            classifier_free_guidance(unet, y, 4, 3.0)(x, t),
            eps_null + 3 * (eps_y - eps_null),
            rtol=0,
            atol=1e-12,
        )


def test_the_null_label_may_be_the_nets_own_another_or_a_caption(net):
    x = normal(5, 2)
    own, given = (classifier_free_guidance(net, Y, null, 2.0)(x, T) for null in (None, 3))
    assert_close(own, given, rtol=0, atol=0)
    away = classifier_free_guidance(net, Y, 2, 2.0)(x, T)
    assert_close(
        away,
        2 * condition(net, Y)(x, T) - condition(net, torch.full((5,), 2))(x, T),
        rtol=0,
        atol=1e-12,
    )
    captions, null = torch.ones(5, 2, dtype=F64), torch.tensor([0.0, -1.0], dtype=F64)
    assert_close(
        classifier_free_guidance(lambda x, t, y: y, captions, null, 3.0)(x, T),
        null + 3 * (captions - null),
        rtol=0,
        atol=1e-12,
    )


def test_one_time_for_all_will_do(net):
    x = normal(5, 2)
    guided = classifier_free_guidance(net, Y, 3, 2.0)
    assert_close(guided(x, torch.tensor(300)), guided(x, torch.full((5,), 300)), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite_is_refused(net, mixture, linear, bad):
    model = mixture.eps_model(linear)
    with pytest.raises(ValueError, match=f"guidance_scale = {bad} must be a finite number"):
        classifier_free_guidance(net, Y, 3, bad)
    with pytest.raises(ValueError, match=f"scale = {bad} must be a finite number"):
        classifier_guidance(model, mixture.log_posterior(linear, 0), linear, bad)
    with pytest.raises(ValueError, match=f"scale = {bad} must be a finite number"):
        clip_guidance(model, lambda x_0: x_0.sum(1), linear, bad)


# --- rescaling ---


def test_rescaling_is_by_hand():
    """Four numbers with spread 2, beside four with spread 1/2; each image for itself."""
    eps = torch.tensor([[1.0, 5.0, 1.0, 5.0], [0.0, 0.0, 0.0, 8.0]], dtype=F64)
    eps_y = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0]], dtype=F64)
    assert_close(rescale_guidance(eps, eps_y, 1.0), eps / 4, rtol=0, atol=1e-12)
    assert_close(rescale_guidance(eps, eps_y, 0.0), eps, rtol=0, atol=0)
    assert_close(rescale_guidance(eps, eps_y, 0.7), 0.7 * eps / 4 + 0.3 * eps, rtol=0, atol=1e-12)
    image = rescale_guidance(eps.reshape(2, 1, 2, 2), eps_y.reshape(2, 1, 2, 2), 0.7)
    assert_close(image, rescale_guidance(eps, eps_y, 0.7).reshape(2, 1, 2, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 0.1])
def test_rescaled_noise_has_the_conditional_spread(size):
    eps, eps_y = size * normal(4, 3, 8, 8) + 1, normal(4, 3, 8, 8, seed=1)
    spread = rescale_guidance(eps, eps_y, 1.0).flatten(1).std(1)
    assert_close(spread, eps_y.flatten(1).std(1), rtol=0, atol=1e-12)


def test_noise_without_spread_is_left_alone():
    flat = torch.ones(2, 3, dtype=F64)
    assert_close(rescale_guidance(flat, normal(2, 3), 0.5), flat, rtol=0, atol=0)
    assert_close(
        rescale_guidance(torch.zeros(1, 1), torch.ones(1, 1), 1.0),
        torch.zeros(1, 1),
        rtol=0,
        atol=0,
    )


def test_rescaling_within_free_guidance(net):
    x = normal(5, 2)
    eps, eps_y = classifier_free_guidance(net, Y, 3, 4.0)(x, T), condition(net, Y)(x, T)
    net.calls.clear()
    rescaled = classifier_free_guidance(net, Y, 3, 4.0, rescale=0.7)(x, T)
    assert len(net.calls) == 1
    assert_close(rescaled, rescale_guidance(eps, eps_y, 0.7), rtol=0, atol=1e-12)
    assert_close(classifier_free_guidance(net, Y, 3, 1.0, rescale=0.7)(x, T), eps_y, rtol=0, atol=0)
    eps_null = classifier_free_guidance(net, Y, 3, 0.0)(x, T)
    assert_close(
        classifier_free_guidance(net, Y, 3, 0.0, rescale=0.7)(x, T),
        rescale_guidance(eps_null, eps_y, 0.7),
        rtol=0,
        atol=1e-12,
    )
    for use in (
        lambda: classifier_free_guidance(net, Y, 3, 4.0, rescale=1.1),
        lambda: rescale_guidance(eps, eps_y, math.nan),
    ):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            use()
    with pytest.raises(ValueError, match="must have the same shape"):
        rescale_guidance(eps, eps_y[:1], 0.5)


# --- the interval ---


def test_guidance_within_an_interval():
    asked = []

    def model(name, sign):
        def eps_model(x, t):
            asked.append(name)
            return sign * x

        return eps_model

    limited = guidance_interval(model("guided", 2), model("plain", 1), 40, 700)
    x = normal(5, 3, 2)
    factor = torch.tensor([1.0, 1.0, 2.0, 2.0, 1.0], dtype=F64)  # T = 1, 40, 300, 700, 1000
    assert_close(limited(x, T), factor[:, None, None] * x, rtol=0, atol=0)
    assert sorted(asked) == ["guided", "plain"]
    asked.clear()
    assert_close(limited(x, torch.full((5,), 700)), 2 * x, rtol=0, atol=0)
    assert_close(limited(x, torch.full((5,), 40)), x, rtol=0, atol=0)
    assert_close(limited(x, torch.tensor(40.5)), 2 * x, rtol=0, atol=0)
    assert_close(limited(x, torch.tensor(701)), x, rtol=0, atol=0)
    assert asked == ["guided", "plain", "guided", "plain"]


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5), (math.nan, 5), (5, math.nan)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(ValueError, match=rf"low = {low} must be below high = {high}"):
        guidance_interval(lambda x, t: x, lambda x, t: x, low, high)


# --- classifier guidance ---


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_exact_classifier_gives_the_conditional_model(schedule, mixture, k):
    x, model = normal(5, 2), mixture.eps_model(schedule)
    guided = classifier_guidance(model, mixture.log_posterior(schedule, k), schedule)
    assert_close(guided(x, T), mixture.eps_model(schedule, k)(x, T), rtol=0, atol=1e-10)


def test_classifier_guidance_by_hand(linear):
    """log p = -|x|^2 t / 2000 has the gradient -x t / 1000."""
    x, noise_rate = normal(5, 1, 2, 2), (1 - linear.alpha_bar[T]).sqrt().reshape(5, 1, 1, 1)
    guided = classifier_guidance(
        lambda x, t: 5 * x,
        lambda x, t: -x.square().flatten(1).sum(1) * t.double() / 2000,
        linear,
        3.0,
    )
    share = (T.double() / 1000).reshape(5, 1, 1, 1)
    assert_close(guided(x, T), 5 * x + noise_rate * 3 * share * x, rtol=0, atol=1e-12)


# --- CLIP guidance ---


def test_clip_guidance_by_hand(linear):
    """eps = c x, so x_0 = (1 - n c) x / a; similarity -|x_0 - target|^2 / 2 has, in x_t, the gradient
    -(1 - n c) / a (x_0 - target)."""
    c, target, x = 0.3, torch.tensor([0.2, -0.5], dtype=F64), normal(5, 2)
    a, n = linear.at(T, x)
    guided = clip_guidance(
        lambda x, t: c * x, lambda x_0: -0.5 * (x_0 - target).square().sum(1), linear, 2.0
    )
    x_0 = (1 - n * c) * x / a
    gradient = -(1 - n * c) / a * (x_0 - target)
    expected = c * x - 2 * n * gradient
    torch.testing.assert_close(guided(x, T), expected, rtol=1e-12, atol=0)


def test_clip_guidance_is_classifier_guidance_by_the_predicted_x0(linear, mixture):
    model, x = mixture.eps_model(linear), normal(5, 2)
    target = torch.tensor([0.7, 0.6], dtype=F64)

    def similarity(x_0):
        return -(x_0 - target).square().sum(1)

    ours = clip_guidance(model, similarity, linear, 0.7)
    through = classifier_guidance(
        model, lambda x, t: similarity(predict_x0(model(x, t), x, t, linear)), linear, 0.7
    )
    assert_close(ours(x, T), through(x, T), rtol=0, atol=1e-10)


def test_clip_guidance_asks_the_model_once(linear):
    asked = []

    def model(x, t):
        asked.append(t)
        return 0.1 * x

    clip_guidance(model, lambda x_0: x_0.sum(1), linear, 1.0)(normal(5, 2), T)
    assert len(asked) == 1


def test_clip_guidance_improves_what_the_judge_sees(linear, mixture):
    target, x_T, times = mixture.means[1], normal(300, 2), timesteps(1000, 50)
    model = mixture.eps_model(linear)
    guided = clip_guidance(model, lambda x_0: -2 * (x_0 - target).square().sum(1), linear, 1.0)
    free, led = (last(ddim_sample(m, x_T, times, linear)) for m in (model, guided))
    assert (led - target).norm(dim=1).mean() < 0.5 * (free - target).norm(dim=1).mean()


# --- all of them ---


def test_guided_models_are_eps_models_inside_a_sampler(linear, mixture, net):
    """Samplers run under no_grad; guidance that needs a gradient takes it all the same, keeps no
    graph, and leaves the caller's mode alone."""
    posterior, model = mixture.log_posterior(linear, 1), mixture.eps_model(linear)
    y = torch.full((8,), 1)
    free = classifier_free_guidance(net, y, 3, 1.5)
    by_classifier = classifier_guidance(model, posterior, linear, 1.5)
    x_T, times = normal(8, 2), timesteps(1000, 10)
    samples = [last(ddim_sample(m, x_T, times, linear)) for m in (free, by_classifier)]
    assert_close(samples[0], samples[1], rtol=0, atol=1e-8)
    composed = guidance_interval(
        clip_x0(by_classifier, linear),
        clip_guidance(model, lambda x_0: x_0[:, 0], linear, 0.1),
        100,
        900,
    )
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            steps = ddim_sample(composed, x_T, times, linear)
            assert not next(steps).x.requires_grad
            assert torch.is_grad_enabled() == grad


def test_results_carry_no_gradient_and_parameters_get_none(linear, unet):
    x, t = normal(2, 1, 8, 8), torch.tensor([5, 900])
    model = condition(unet, torch.tensor([0, 1]))
    by_classifier = classifier_guidance(model, lambda x, t: unet(x, t).flatten(1).sum(1), linear)
    by_clip = clip_guidance(model, lambda x_0: x_0.flatten(1).sum(1), linear, 1.0)
    for guided in (by_classifier, by_clip):
        assert not guided(x, t).requires_grad
        assert not x.requires_grad
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_results_have_the_dtype_of_the_state(linear):
    x = normal(5, 2).float()
    for guided in (
        classifier_guidance(lambda x, t: x.double(), lambda x, t: x.double().sum(1), linear),
        clip_guidance(lambda x, t: x.double(), lambda x_0: x_0.double().sum(1), linear, 1.0),
        classifier_free_guidance(lambda x, t, y: x.double(), Y, 3, 2.0, rescale=0.5),
        classifier_free_guidance(lambda x, t, y: x.double(), Y, 3, 1.0),
    ):
        assert guided(x, T).dtype == torch.float32


def test_a_judge_must_give_one_number_an_image(linear):
    x, model = normal(5, 2), lambda x, t: x
    with pytest.raises(ValueError, match=r"log_prob returned shape \(5, 1\), expected \(5,\)"):
        classifier_guidance(model, lambda x, t: x.sum(1, keepdim=True), linear)(x, T)
    with pytest.raises(ValueError, match=r"similarity returned shape \(\), expected \(5,\)"):
        clip_guidance(model, lambda x_0: x_0.mean(), linear, 1.0)(x, T)


def test_samples_of_the_guided_mixture_come_from_the_asked_component(linear):
    far = GaussianMixture(
        torch.tensor([0.7, 0.3]), torch.tensor([[-1.0], [1.0]]), torch.tensor([0.1, 0.1])
    )
    guided = classifier_guidance(far.eps_model(linear), far.log_posterior(linear, 1), linear)
    x = last(ddim_sample(guided, normal(200, 1), timesteps(1000, 50), linear))
    assert (x > 0.5).all()
