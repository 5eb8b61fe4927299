"""Wordings of scenes, read by a grammar of their own; and their tokenizer, against transformers."""

import math
import re
import string
from itertools import permutations

import numpy as np
import pytest

from diffusion_core.data import (
    KINDS,
    MOST_TOKENS,
    PALETTE,
    RELATIONS,
    WORDS,
    Scene,
    Thing,
    count_tokens,
    describe,
    shapes,
    unknown_words,
    words,
    write_tokenizer,
)

COLOUR, KIND = "|".join(PALETTE), "|".join(KINDS)
THING = re.compile(rf"(?:(an?) )?(?:(small|large) )?(?:({COLOUR}) )?({KIND})")
GROUND = re.compile(rf"(?:(an?) )?({COLOUR}) background")
RELATION = re.compile(r" (above|over|below|under|(?:to the )?left of|(?:to the )?right of) ")


def read(text):
    """(things, relation or None, background or None, articles) of a wording; AssertionError if it
    is none. things: (size, colour, kind), None where not named."""
    ground = None
    for pattern in (
        r"(?P<s>.+) on (?P<g>.+)",
        r"(?P<g>.+ background) with (?P<s>.+)",
        r"(?P<s>.+), (?P<g>.+)",
    ):
        if found := re.fullmatch(pattern, text):
            text, ground = found["s"], GROUND.fullmatch(found["g"])
            assert ground, found["g"]
            break
    parts = RELATION.split(text)
    assert len(parts) in (1, 3), text
    things = [THING.fullmatch(part) for part in parts[::2]]
    assert all(things), text
    articles = [match[1] for match in [*things, ground] if match]
    return (
        [m.groups()[1:] for m in things],
        parts[1] if parts[1:] else None,
        ground and ground[2],
        articles,
    )


def true_of(scene, things, relation, background):
    """Whether a wording holds, by the coordinates of the things, not by the scene's own relation."""

    def fits(named, thing):
        return all(a in (None, b) for a, b in zip(named, (thing.size, thing.colour, thing.kind)))

    def lie(a, b):
        if "left" in relation or "right" in relation:
            return abs(a.x - b.x) > abs(a.y - b.y) and (a.x < b.x) == ("left" in relation)
        return abs(a.y - b.y) > abs(a.x - b.x) and (a.y < b.y) == (relation in ("above", "over"))

    return background in (None, scene.background) and any(
        all(map(fits, things, order)) and (relation is None or lie(*order))
        for order in permutations(scene.things, len(things))
    )


def test_every_wording_is_true_and_in_good_english():
    rng = np.random.default_rng(0)
    for scene in shapes(1000, seed=3, size=16).scenes:
        text = describe(scene, rng)
        things, relation, background, articles = read(text)
        assert len(things) == len(scene.things)
        assert (relation is None) == (not scene.relation)
        assert true_of(scene, things, relation, background), (text, scene)
        assert all(articles) or not any(articles), text
        for article, following in re.findall(r"\b(an?) (\w)", text):
            assert article == ("an" if following in "aeiou" else "a"), text
        assert not unknown_words(text)
        assert count_tokens(text) <= MOST_TOKENS


def test_the_reader_of_this_file_sees_what_is_wrong():
    red, blue = (
        Thing("", "red", "circle", 0.5, 0.2, 0.1),
        Thing("small", "blue", "ring", 0.5, 0.8, 0.1),
    )
    scene = Scene((red, blue), "above", "white")
    for text, right in {
        "a red circle above a small blue ring on a white background": True,
        "white background with ring under circle": True,
        "red circle over ring, white background": True,
        "a red circle below a small blue ring on a white background": False,
        "a blue circle above a red ring": False,
        "a small red circle above a ring": False,
        "a red circle to the left of a blue ring": False,
        "a red circle above a blue ring on a black background": False,
    }.items():
        assert true_of(scene, *read(text)[:3]) == right, text


def test_wordings_occur_as_often_as_they_should():
    """Within four standard errors of the shares that describe() states, for one scene."""
    n, rng = 4000, np.random.default_rng(1)
    things = (
        Thing("small", "red", "circle", 0.2, 0.5, 0.1),
        Thing("", "blue", "ring", 0.8, 0.5, 0.1),
    )
    scene = Scene(things, "to the left of", "green")
    texts = [describe(scene, rng) for _ in range(n)]
    found = [read(text) for text in texts]

    def share(hits, p):
        hits = list(hits)
        assert abs(sum(hits) / len(hits) - p) < 4 * math.sqrt(p * (1 - p) / len(hits))

    share((relation in ("to the right of", "right of") for _, relation, _, _ in found), 0.5)
    share((relation in ("left of", "right of") for _, relation, _, _ in found), 0.5)
    share((bool(articles[0]) for *_, articles in found), 0.8)
    share((ground is None for _, _, ground, _ in found), 0.05)
    share((" with " in text for text in texts if "background" in text), 0.15)
    share((", " in text for text in texts if "background" in text), 0.15 + 0.7 * 0.2)
    small = [thing for named, *_ in found for thing in named if thing[2] == "circle"]
    share((thing[0] is None for thing in small), 0.1)
    share((thing[1] is None for named, *_ in found for thing in named), 0.03)
    assert {thing[0] for named, *_ in found for thing in named if thing[2] == "ring"} == {None}


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_is_turned_round_with_its_things(relation):
    a, b = (0.2, 0.8) if relation in ("above", "to the left of") else (0.8, 0.2)
    upright = relation in ("above", "below")
    places = [(0.5, a), (0.5, b)] if upright else [(a, 0.5), (b, 0.5)]
    names = (("", "red", "circle"), ("", "blue", "ring"))
    scene = Scene(tuple(Thing(*n, *at, 0.1) for n, at in zip(names, places)), relation, "white")
    rng = np.random.default_rng(2)
    orders = set()
    for _ in range(60):
        things, said, background, _ = read(describe(scene, rng))
        assert true_of(scene, things, said, background)
        orders.add((things[0][2], said))
    assert len(orders) == 4, "two orders, each with two words for its relation"


def test_a_wording_depends_on_its_generator_alone():
    (scene,) = shapes(1, size=16).scenes
    texts = [[describe(scene, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_unknown_words():
    assert unknown_words("A pink circle, above a Hexagon on a pink, red background.") == [
        "pink",
        "hexagon",
    ]
    assert unknown_words("  ") == []
    assert unknown_words(" ".join(WORDS)) == []


# --- the tokenizer, as transformers reads it ---


def load(folder):
    return pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load(folder)


def test_every_word_is_one_token_of_its_own(tokenizer):
    numbers = {word: tokenizer(word)["input_ids"] for word in WORDS}
    assert {len(ids) for ids in numbers.values()} == {3}
    assert len({ids[1] for ids in numbers.values()}) == len(WORDS)
    assert {(ids[0], ids[2]) for ids in numbers.values()} == {
        (tokenizer.bos_token_id, tokenizer.eos_token_id)
    }
    everything = tokenizer(" ".join(WORDS))["input_ids"][1:-1]
    assert everything == [ids[1] for ids in numbers.values()]
    assert max(everything) < len(tokenizer)


def test_a_prompt_is_padded_cut_and_read_in_any_case(tokenizer):
    settings = {
        "padding": "max_length",
        "truncation": True,
        "max_length": tokenizer.model_max_length,
    }
    assert tokenizer.model_max_length == MOST_TOKENS
    short = tokenizer("A Red circle", **settings)["input_ids"]
    assert short == tokenizer("a red  circle", **settings)["input_ids"]
    assert len(short) == MOST_TOKENS
    assert set(short[4:]) == {tokenizer.eos_token_id}
    long = tokenizer("red " * 40, **settings)["input_ids"]
    assert len(long) == MOST_TOKENS
    assert long[-1] == tokenizer.eos_token_id


def test_a_prompt_that_was_read_can_be_written_again(tokenizer):
    rng = np.random.default_rng(5)
    for scene in shapes(50, seed=5, size=16).scenes:
        text = describe(scene, rng)
        ids = tokenizer(text)["input_ids"]
        again = tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert again.replace(" ", "") == text.replace(" ", "")


def test_count_tokens_is_the_tokenizers(tokenizer):
    rng = np.random.default_rng(4)
    texts = [describe(scene, rng) for scene in shapes(200, seed=4, size=16).scenes]
    for text in [
        *texts,
        *(text.replace(", ", ",") + "." for text in texts),
        "",
        "Red  circle ,ring",
    ]:
        assert count_tokens(text) == len(tokenizer(text)["input_ids"]), text


def test_an_unknown_word_falls_apart(tokenizer):
    assert len(tokenizer("hexagon")["input_ids"]) > 3
    assert len(tokenizer("reddish circle 7")["input_ids"]) > 5
    assert unknown_words("reddish circle 7") == ["reddish", "7"]


def bpe(word, merges):
    """The pieces of a word by byte-pair encoding, written out: the earliest merge first, everywhere."""
    parts = [*word[:-1], word[-1] + "</w>"]
    for a, b in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (a, b):
                parts[i : i + 2] = [a + b]
            i += 1
    return parts


def test_merges_change_no_earlier_word(tmp_path, monkeypatch):
    """Also of words that are made of each other's pieces, in any order."""
    rng = np.random.default_rng(0)
    for trial in range(60):
        drawn = ["".join(rng.choice(list("abc"), rng.integers(1, 8))) for _ in range(12)]
        merges = []
        for k, word in enumerate(drawn):
            merges += words._merges_of(word, merges)
            assert all(bpe(w, merges) == [w + "</w>"] for w in drawn[: k + 1]), (trial, drawn)
            assert len(set(merges)) == len(merges)
    nested = (
        "a",
        "an",
        "and",
        "band",
        "round",
        "ground",
        "background",
        "rounded",
        "no",
        "on",
        "noon",
    )
    monkeypatch.setattr(words, "WORDS", nested)
    write_tokenizer(tmp_path)
    assert len(load(tmp_path)(" ".join(nested))["input_ids"]) == 2 + len(nested)


def test_every_letter_and_digit_has_a_token(tokenizer):
    for letter in string.ascii_lowercase + string.digits:
        assert tokenizer.tokenize(letter) == [letter + "</w>"]
        assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(
            tokenizer.tokenize(f"x{letter}x")
        )
