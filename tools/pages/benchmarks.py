"""Make book/reference/benchmarks.md: our code's speed beside other libraries'. From book/_data/benchmarks.json, never by hand.

`python -m benchmarks` writes that file: for each device and precision up to three tables, each of which may be missing, and
where it was stopped a table may be incomplete. Whether an aim is met, missed or a tie is computed here from the numbers.
"""

import json
import math
import statistics

from tools import layout
from tools.pages.markdown import generated

PAGE = layout.BOOK / "reference" / "benchmarks.md"
FILE = layout.BOOK / "_data" / "benchmarks.json"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
LIBRARIES = ("ours", "lucidrains", "diffusers")
AIMS = {
    "overhead": {"lucidrains": 1.0, "diffusers": 1.0},
    "recipes": {"lucidrains": 3.0, "diffusers": 1.5},
}
STEPS = {"train": "training step", "sample": "sampling step"}
ABOUT = """
How fast is the code of this book, *ours* in the tables, beside two libraries that many people use:
[diffusers](https://github.com/huggingface/diffusers) and lucidrains'
[denoising-diffusion-pytorch](https://github.com/lucidrains/denoising-diffusion-pytorch)? `python -m benchmarks --again overhead
recipes` times all three in one run; this page is made from what it stored, by `make pages`.
Where they do the same thing and where not, number by number, is the subject of
{chapter}`The same model in the libraries <2-from-scratch/libraries>`.

A **ratio** is the other library's time over ours, so **above 1 ours is faster**. In every round each contender runs once, in
an order drawn anew, and the ratio is taken within the round: what else the machine does slows both. A cell holds the
median over the rounds and, in brackets, the middle half of them; ratios are cut off after the third digit, not rounded. Two
rounds of warm-up are not counted.
A *training step* is the loss, its gradient, clipping of the gradient's norm, and Adam; a *sampling step* is one evaluation of the
network and the step from $t$ to $t - 1$, as the library does it by default: the other two also clip the predicted image.
Images are grey, of 32 × 32 pixels.
"""
INTRODUCTIONS = {
    "overhead": """
What does a library cost besides its network? First our network runs in the training and the sampling step of all three
libraries; then lucidrains' network in theirs and ours, and that of diffusers in theirs and ours. So only what is around the
network differs.
The aim: ours is no slower than each of them, a ratio of 1. Where the middle half of the rounds holds the aim, they cannot tell
which is faster: a tie.
""",
    "recipes": """
Each library with the network that its own documentation builds: ours is that of the `mnist` recipe,
without labels; lucidrains' that of its README; for diffusers that of the Hugging Face course. The networks differ in size, so
this compares what a reader gets who follows each documentation, not code with code. The aims, for each of the two steps:
a ratio of at least 1.5 to diffusers and of at least 3 to lucidrains. A smaller network is only an advantage if it learns as
well, which these numbers do not say.
""",
    "budget": """
The networks of the last table are trained on MNIST for the same number of seconds, with the same batch size and precision, and
with the same moving average, all by Adam at a constant rate: ours at 1.5e-3 with the betas (0.9, 0.99), those of the recipe; lucidrains' at
1e-4 with (0.9, 0.99), the defaults of its `Trainer` (its README has 8e-5); that of diffusers at 1e-4 with (0.9, 0.999), as in its training
tutorial (the course's notebook trains this network at 1e-3). Then all of them are sampled by one sampler, and the features of our
[classifier](api/networks.md) give the Fréchet distance between the samples and the test images: lower is better. On a CPU a second is one of processor time,
summed over threads. These budgets are the first minutes of a training, in which the larger
learning rate and the cheaper step count most.

**No aim can be decided by this table.** Rate and network changed together: ours has a recipe tuned for it, that of diffusers a tenth of
the rate that its own course uses. A fair comparison gives each network the best of a small sweep of rates, with three seeds; it
is not measured yet. What stands here is how far each gets as its documentation, or its defaults, would train it.
The cells hold the mean over the seeds ± their standard deviation; with one seed its value alone.
""",
}
TITLES = {
    "overhead": "One network, three libraries",
    "recipes": "Each library's own network",
    "budget": "Equal seconds",
}


def load():
    """{"cpu bf16": {"overhead", "recipes", "budget", "budget_settings", "provenance": {TABLE: ...}}, ...}; what was not measured is
    missing."""
    return json.loads(FILE.read_text(encoding="utf8")) if FILE.exists() else {}


def page():
    return text_of(load())


def text_of(found):
    """The page for these measurements."""
    return generated("Benchmarks", ABOUT, _body(found) if found else [], "No run is stored yet.")


def _body(found):
    lines = _verdict([aim for key, section in found.items() for aim in aims(key, section)])
    for table, rows_of in (("overhead", _overhead), ("recipes", _recipes), ("budget", _budget)):
        lines += [f"## {TITLES[table]}", "", INTRODUCTIONS[table].strip(), ""]
        measured = [(key, section) for key, section in found.items() if section.get(table)]
        for key, section in measured:
            lines += rows_of(_label(key), section)
        if not measured:
            lines += [f"Not measured yet: `python -m benchmarks {table}`.", ""]
    return lines + _provenance(found)


# --- aims ---


def aims(key, section):
    """Every aim of this device and precision: [("met", "a tie" or "missed", what was compared and measured), ...]."""
    return [*_ratio_aims(key, section)]


def _ratio_aims(key, section):
    for net, rows in section.get("overhead", {}).items():
        yield from _aims_of(rows, AIMS["overhead"], f"with {_whose(net)} network ({_label(key)})")
    yield from _aims_of(
        section.get("recipes", []),
        AIMS["recipes"],
        f"with each library's own network ({_label(key)})",
    )


def _aims_of(rows, bounds, where):
    for row in rows:
        for step, name in STEPS.items():
            ratio = row.get(f"{step}_ratio")
            if row["name"] in bounds and ratio:
                bound = bounds[row["name"]]
                yield (
                    _outcome(ratio, bound),
                    f"{name} {where}: ratio {_spread(ratio, _ratio)} to {row['name']}, aim {bound:g}",
                )


def _outcome(ratio, bound):
    """A tie where the middle half of the rounds holds the bound."""
    if ratio["low"] <= bound <= ratio["high"]:
        return "a tie"
    return "met" if ratio["median"] >= bound else "missed"


def _verdict(decided):
    """How many aims are met, how many are ties, and each that is missed."""
    if not decided:
        return ["Nothing is measured yet that an aim could be compared with.", ""]
    of = {
        word: [what for found, what in decided if found == word]
        for word in ("met", "a tie", "missed")
    }
    counts = [f"{len(of['met'])} met", f"{len(of['a tie'])} a tie", f"{len(of['missed'])} missed"]
    line = f"**Of {len(decided)} aims below: {', '.join(counts)}{':' if of['missed'] else '.'}**"
    return [line, "", *(f"- {what}" for what in of["missed"]), *([""] if of["missed"] else [])]


# --- tables ---


def _overhead(label, section):
    groups = section["overhead"]
    return _caption(label, groups) + _ratios(groups, AIMS["overhead"]) + _sizes(groups)


def _recipes(label, section):
    groups = {"each its own": section["recipes"]}
    return _caption(label, groups) + _ratios(groups, AIMS["recipes"]) + _sizes(groups)


def _caption(label, groups):
    """Above a table: device, precision, images a step, rounds."""
    rows = [row for rows in groups.values() for row in rows]
    batches = sorted({row["batch_size"] for row in rows})
    rounds = sorted(
        {row[f"{step}_ms"]["n"] for row in rows for step in STEPS if row.get(f"{step}_ms")}
    )
    return [f"**{label}**, {_all(batches)} images a step, n = {_all(rounds)} rounds:", ""]


def _ratios(groups, bounds):
    """One line for each network, step and other library: both times, their ratio, and whether the aim is met."""
    lines = [
        "| network | step | ours, ms | the other, ms | ratio | aim |",
        "|---|---|---|---|---|---|",
    ]
    for net, rows in groups.items():
        own = next((row for row in rows if row["name"] == "ours"), {})
        for row in rows:
            for step, name in STEPS.items():
                ratio, bound = row.get(f"{step}_ratio"), bounds.get(row["name"])
                if ratio and bound:
                    times = f"{_times(own.get(f'{step}_ms'))} | {row['name']} {_times(row.get(f'{step}_ms'))}"
                    aim = f"≥ {bound:g}: {_word(_outcome(ratio, bound))}"
                    lines.append(
                        f"| {net} | {name.split()[0]} | {times} | {_spread(ratio, _ratio)} | {aim} |"
                    )
    return [*lines, ""]


def _sizes(groups):
    """One line for each contender: how large its network is, and the memory that a training step takes."""
    lines = [
        "| network | library | parameters | multiply-adds | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    for net, rows in groups.items():
        for row in rows:
            memory = row.get("peak_memory_mib")
            size = f"{_millions(row['parameters'])} | {_millions(row['multiply_adds'])} | {'–' if memory is None else f'{memory:.0f}'}"
            lines.append(f"| {net} | {row['name']} | {size} |")
    return [*lines, ""]


def _budget(label, section):
    rows, settings = section["budget"], section.get("budget_settings", {})
    said = ", ".join(
        f"{settings[key]} {words}" for key, words in _SETTINGS.items() if key in settings
    )
    lines = [f"**{label}**" + (f", {said}:" if said else ":"), ""]
    lines += [
        "| seconds | library | training steps | Fréchet distance | seeds |",
        "|---|---|---|---|---|",
    ]
    means = _budget_means(rows)
    for (seconds, name), values in means.items():
        steps = statistics.mean(
            row["steps"] for row in rows if (row["seconds"], row["name"]) == (seconds, name)
        )
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        lines.append(
            f"| {seconds:g} | {name} | {steps:,.0f} | {statistics.mean(values):.2f}{spread} | {len(values)} |"
        )
    floor = [row["frechet"] for row in rows if row["name"] == "train images"]
    if floor:
        lines += [
            "",
            f"As many training images in place of samples have the distance {floor[0]:.2f}. That is one draw, and so few images scatter widely: "
            "{chapter}`Sampling <2-from-scratch/sampling>` says what to expect of a number of images.",
        ]
    return [*lines, ""]


_SETTINGS = {
    "batch_size": "images a step",
    "samples": "samples for each distance",
    "steps": "sampling steps",
}


def _budget_means(rows):
    """{(seconds, library): [distance of each seed]}, by budget and then in the order of LIBRARIES."""
    kept = sorted(
        (row for row in rows if row["name"] in LIBRARIES),
        key=lambda row: (row["seconds"], LIBRARIES.index(row["name"])),
    )
    found = {}
    for row in kept:
        found.setdefault((row["seconds"], row["name"]), []).append(row["frechet"])
    return found


def _provenance(found):
    lines = [
        "## How it was measured",
        "",
        "| table | command | date | hardware | PyTorch |",
        "|---|---|---|---|---|",
    ]
    for key, section in found.items():
        for table in TITLES:
            if section.get(table):
                made = section.get("provenance", {}).get(table, {})
                command = f"`{made['command']}`" if "command" in made else "–"
                rest = " | ".join(made.get(name, "–") for name in ("date", "hardware", "torch"))
                lines.append(f"| {TITLES[table]}, {_label(key)} | {command} | {rest} |")
    return [
        *lines,
        "",
        "Multiply-adds are those of one forward pass for one image, attention counted as matrix products. Peak memory is what tensors",
        "take at the height of one training step: weights, Adam's two moments, and what the step allocates; – means not measured.",
        "The other libraries have the versions that `requirements-compare.txt` pins.",
    ]


# --- cells ---


def _times(found):
    return _spread(found, _time) if found else "–"


def _spread(found, form):
    """Median and middle half; only before the bracket may a line break."""
    return f"{form(found['median'])} [{form(found['low'])},\N{NO-BREAK SPACE}{form(found['high'])}]"


def _word(outcome):
    return "**missed**" if outcome == "missed" else outcome


def _ratio(value):
    """Three digits, cut off and not rounded: what is just below an aim is not printed as the aim."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}"


def _time(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _millions(number):
    return f"{number / 1e6:.2f} M" if number < 1e7 else f"{number / 1e6:,.0f} M"


def _all(values):
    return " or ".join(map(str, values)) or "–"


def _whose(net):
    return "our" if net == "ours" else f"{net}'" if net.endswith("s") else f"{net}'s"


def _label(key):
    """ "cpu bf16" as people write it."""
    device, _, precision = key.partition(" ")
    return f"{DEVICES.get(device, device)}, {precision}"
