"""What the page of benchmarks says of measurements."""

from tools.pages import benchmarks


def step_times(ratio):
    """A row's times and ratios, where every ratio has this median."""
    spread = {"low": ratio - 0.1, "median": ratio, "high": ratio + 0.1, "n": 11}
    return {f"{step}_{what}": spread for step in ("train", "sample") for what in ("ms", "ratio")}


def row(name, ratio, **more):
    return {
        "name": name,
        "parameters": 10**6,
        "multiply_adds": 10**8,
        "batch_size": 16,
        **step_times(ratio),
        **more,
    }


def distance(name, seconds, value, seed=0):
    return {
        "name": name,
        "seed": seed,
        "seconds": seconds,
        "steps": 100,
        "frechet": value,
        "n": 1000,
    }


def test_benchmarks_of_which_nothing_is_measured_have_a_page():
    assert "No run is stored yet." in benchmarks.text_of({})
    text = benchmarks.text_of({"cpu bf16": {"recipes": [row("ours", 1.0), row("diffusers", 2.0)]}})
    assert "Not measured yet: `python -m benchmarks overhead`" in text
    assert "Not measured yet: `python -m benchmarks budget`" in text
    assert "**Of 2 aims below: 2 met, 0 a tie, 0 missed.**" in text


def test_benchmarks_say_which_aims_are_missed():
    section = {
        "overhead": {
            "ours": [
                row("ours", 1.0),
                row("lucidrains", 0.9996),
                row("diffusers", 1.0, peak_memory_mib=12.3),
            ]
        },
        "recipes": [row("ours", 1.0), row("lucidrains", 2.8), row("diffusers", 1.7)],
        "provenance": {
            "budget": {
                "command": "python -m benchmarks budget",
                "date": "2026-01-01",
                "hardware": "a GPU",
                "torch": "2",
            }
        },
        "budget": [
            *(distance("ours", 30.0, value, seed) for seed, value in enumerate((3.0, 5.0))),
            *(distance("lucidrains", 30.0, value, seed) for seed, value in enumerate((3.5, 4.0))),
            distance("diffusers", 30.0, 4.5),
            distance("lucidrains", 60.0, 9.0),
            distance("train images", 0, 0.1),
        ],
    }
    missed = [
        what for outcome, what in benchmarks.aims("cuda fp32", section) if outcome == "missed"
    ]
    assert missed == [
        "training step with each library's own network (GPU, fp32): ratio 2.80 [2.70,\N{NO-BREAK SPACE}2.90] to lucidrains, aim 3",
        "sampling step with each library's own network (GPU, fp32): ratio 2.80 [2.70,\N{NO-BREAK SPACE}2.90] to lucidrains, aim 3",
    ]
    text = benchmarks.text_of({"cuda fp32": section})
    assert all(f"- {what}\n" in text for what in missed)
    assert "**Of 8 aims below: 2 met, 4 a tie, 2 missed:**" in text, (
        "a ratio whose middle half holds the aim decides nothing"
    )
    assert text.count("≥ 1: a tie |") == 4
    assert "| 30 | ours | 100 | 4.00 ± 1.41 | 2 |" in text
    assert "| 60 | lucidrains | 100 | 9.00 | 1 |\n" in text, (
        "equal seconds decide no aim: rate and network differ together"
    )
    assert "have the distance 0.10" in text
    assert (
        "| Equal seconds, GPU, fp32 | `python -m benchmarks budget` | 2026-01-01 | a GPU | 2 |"
        in text
    )
    assert "| One network, three libraries, GPU, fp32 | – | – | – | – |" in text
    assert "| 12 |" in text and "| – |" in text
