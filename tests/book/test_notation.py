"""The notation page names what the package has, and all that a reader of its mathematics meets."""

import importlib
import inspect
import re

import pytest

from tools import layout


def notation_rows():
    """The four-column rows of the notation page: [(symbol, meaning, [our names], [diffusers' names]), ...]."""
    rows = []
    for line in (layout.BOOK / "reference" / "notation.md").read_text(encoding="utf8").splitlines():
        cells = (
            [cell.strip() for cell in line.strip().strip("|").split(" | ")]
            if line.startswith("|")
            else []
        )
        if len(cells) == 4 and cells[0] != "symbol":
            rows.append(
                (
                    cells[0],
                    cells[1],
                    re.findall(r"`([^`]+)`", cells[2]),
                    re.findall(r"`([^`]+)`", cells[3]),
                )
            )
    return rows


# Where the mathematics is, and what it is asked to do.
MATHEMATICS = (
    "schedules",
    "prediction",
    "sampling",
    "ddpm",
    "likelihood",
    "ddim",
    "sde",
    "guidance",
    "exact",
)
# Arguments that are no symbols of the mathematics: who draws, what is checked, how wide a layer is.
STRUCTURAL = {
    "self",
    "cls",
    "generator",
    "like",
    "schedule",
    "coefficient",
    "component",
    "decoder",
    "n",
    "x",
    "low",
    "high",
    "nats",
    "steps",
    "step",
    "noisy",
    "strata",
    "name",
    "guided",
    "unguided",
}


def imported(module):
    return importlib.import_module(f"diffusion_core.{module.replace('/', '.')}")


def own(module, kind):
    """The public classes or functions (`kind`: inspect.isclass, inspect.isfunction) that a module defines: [(name, it), ...]."""
    found = inspect.getmembers(imported(module), kind)
    return [
        (name, value)
        for name, value in found
        if not name.startswith("_") and value.__module__ == imported(module).__name__
    ]


def package_names():
    """(public names of the package, attributes written Class.name, arguments of the functions and methods of the mathematics
    and of the networks)."""
    names, attributes, functions = set(), set(), []
    for module in layout.modules():
        names |= {name for name in vars(imported(module)) if not name.startswith("_")}
        for name, value in own(module, inspect.isclass):
            members = [*dir(value), *getattr(value, "__annotations__", {})]
            attributes |= {f"{name}.{a}" for a in members if not a.startswith("_")}
    for module in (*MATHEMATICS, "networks/unet"):
        functions += [function for _, function in own(module, inspect.isfunction)]
        for _, value in own(module, inspect.isclass):
            methods = inspect.getmembers(value, inspect.isfunction)
            functions += [
                f
                for name, f in methods
                if not name.startswith("_") and f.__module__ == value.__module__
            ]
    return (
        names,
        attributes,
        {name for function in functions for name in inspect.signature(function).parameters},
    )


def test_our_names_in_the_notation_exist():
    names, attributes, arguments = package_names()
    known = names | attributes | arguments
    unknown = [
        name
        for _, _, ours, _ in notation_rows()
        for name in ours
        if name not in known and not name.startswith('"')
    ]
    assert len(notation_rows()) > 30
    assert not unknown, f"the notation page names what the package does not have: {unknown}"


def test_the_notation_holds_every_argument_of_the_mathematics():
    listed = {name for _, _, ours, _ in notation_rows() for name in ours}
    functions = [
        function for module in MATHEMATICS for _, function in own(module, inspect.isfunction)
    ]
    arguments = {name for function in functions for name in inspect.signature(function).parameters}
    # `beta_max` and cosine_betas' own offset `s` are explained on its page
    missing = arguments - listed - STRUCTURAL - {"beta_max"}
    assert not missing, f"arguments that the notation page does not explain: {sorted(missing)}"


def test_the_notation_holds_the_contract():
    """Names that chapters, tests and other code build on, wherever their module exists already."""
    contract = {
        "schedules": [
            "NoiseSchedule.T",
            "NoiseSchedule.alpha_bar",
            "NoiseSchedule.alpha_bar_at",
            "NoiseSchedule.at",
            "NoiseSchedule.beta_at",
            "NoiseSchedule.snr",
            "NoiseSchedule.time_at",
            "timesteps",
            "karras_times",
        ],
        "prediction": ["predict_x0", "predict_v", "eps_from_v"],
        "ddpm": ["q_sample", "q_posterior", "ddpm_step", "eps_loss", "simple_loss"],
        "likelihood": ["vlb_terms"],
        "ddim": ["ddim_sigma", "ddim_step", "ddim_invert"],
        "sde": [
            "VPSDE",
            "SubVPSDE",
            "VESDE",
            "score_from_eps",
            "reverse_drift",
            "probability_flow_drift",
            "euler_maruyama",
            "heun_sample",
            "predictor_corrector_sample",
            "log_likelihood",
        ],
        "guidance": ["classifier_free_guidance", "classifier_guidance", "clip_guidance"],
        "exact": ["GaussianMixture.log_prob", "GaussianMixture.score"],
        "networks": ["UNet.forward", "UNet.null_label"],
    }
    listed = {name for _, _, ours, _ in notation_rows() for name in ours}
    _, attributes, _ = package_names()
    for module_name, names in contract.items():
        for name in names:
            assert name in attributes or hasattr(imported(module_name), name), (
                f"the package lost {name}"
            )
            assert name in listed, f"the notation page lacks {name}"


def test_diffusers_names_in_the_notation_exist():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler()
    scheduler.set_timesteps(10)
    arguments = set()
    for function in (
        scheduler.step,
        scheduler.add_noise,
        scheduler._get_variance,
        diffusers.UNet2DModel.forward,
        diffusers.DDIMScheduler.step,
    ):
        arguments |= set(inspect.signature(function).parameters)
    arguments |= {"pred_original_sample"} & set(
        diffusers.schedulers.scheduling_ddpm.DDPMSchedulerOutput.__annotations__
    )
    for _, _, _, theirs in notation_rows():
        for name in theirs:
            name = name.split("[")[0]
            if name.startswith('"'):
                continue
            if name.startswith("DDPMScheduler.config."):
                assert name.rpartition(".")[2] in scheduler.config, name
            elif name.startswith("DDPMScheduler."):
                assert hasattr(scheduler, name.rpartition(".")[2]), name
            else:
                assert name in arguments or hasattr(diffusers, name), name
