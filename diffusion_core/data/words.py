"""Captions in several wordings, and a tokenizer to which each of their words is one token."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from diffusion_core.data.scenes import KINDS, PALETTE, RELATIONS, Scene, Thing
from diffusion_core.files import write_bytes, write_json

SYNONYMS = {"above": ("above", "over"), "below": ("below", "under")} | {
    relation: (relation, relation.replace("to the ", "")) for relation in RELATIONS[2:]
}
_OPPOSITE = dict(zip(RELATIONS, ("below", "above", "to the right of", "to the left of")))
WORDS = tuple(
    dict.fromkeys(
        f"a an small large {' '.join([*PALETTE, *KINDS])} above over below under to the left right "
        "of on background with and , .".split()
    )
)
MOST_TOKENS = 20  # of a prompt, the two marks of its beginning and end included
_START, _END = "<|startoftext|>", "<|endoftext|>"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of a scene in one of several wordings: turned round ("a blue square below
    a red circle"), with the background first, without articles, with another word for the
    relation, and now and then without a size, a colour or the background."""
    things, relation = list(scene.things), scene.relation
    if relation and rng.random() < 0.5:
        things, relation = things[::-1], _OPPOSITE[relation]
    if relation:
        options = SYNONYMS[relation]
        relation = options[int(len(options) * rng.random())]
    articles = rng.random() < 0.8
    phrases = [_phrase(thing, articles, rng) for thing in things]
    scene_words = f" {relation} ".join(phrases)
    if rng.random() < 0.05:
        return scene_words
    ground = _article(f"{scene.background} background", articles)
    how = rng.random()
    if how < 0.7:
        return f"{scene_words} on {ground}" if articles else f"{scene_words}, {ground}"
    return f"{ground} with {scene_words}" if how < 0.85 else f"{scene_words}, {ground}"


def _phrase(thing: Thing, articles: bool, rng: np.random.Generator) -> str:
    size = "" if rng.random() < 0.1 else thing.size
    colour = "" if rng.random() < 0.03 else thing.colour
    return _article(" ".join(word for word in (size, colour, thing.kind) if word), articles)


def _article(words: str, wanted: bool) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}" if wanted else words


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that no caption holds, in order, once each: to the text encoder
    they are letters that it never saw."""
    words = re.findall(r"[^\s,.]+|[,.]", prompt.lower())
    return list(dict.fromkeys(word for word in words if word not in WORDS))


def count_tokens(prompt: str) -> int:
    """How many tokens a prompt of known words takes, the marks of beginning and end included."""
    return 2 + len(re.findall(r"[^\s,.]+|[,.]", prompt))


def write_tokenizer(folder: str | Path) -> None:
    """The files of a `CLIPTokenizer` (transformers) to which every word of WORDS is one
    token: byte-pair merges that build each of them from its letters.

    An unknown word falls apart into letters, as it does in CLIP.
    Raises: OSError as write_bytes.
    """
    letters = sorted(
        {c for word in WORDS for c in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    pieces = letters + [c + "</w>" for c in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for pair in _merges_of(word, merges):
            merges.append(pair)
            pieces.append("".join(pair))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, _START, _END]))}
    folder = Path(folder)
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_bytes(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    marks = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    write_json(folder / "special_tokens_map.json", marks)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MOST_TOKENS}
    write_json(folder / "tokenizer_config.json", settings | {"do_lower_case": True} | marks)


def _merges_of(word: str, merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The merges that a word needs besides those that there are: what the earlier ones leave
    is joined from the left. Later merges come after all earlier ones, so that they change no
    earlier word."""
    parts = [*word[:-1], word[-1] + "</w>"]
    rank = {pair: i for i, pair in enumerate(merges)}
    while True:
        known = [pair for pair in pairwise(parts) if pair in rank]
        if not known:
            break
        parts = _joined(parts, min(known, key=rank.__getitem__))
    new = []
    while len(parts) > 1:
        new.append((parts[0], parts[1]))
        parts = _joined(parts, new[-1])
    return new


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            joined.append("".join(pair))
            i += 2
        else:
            joined.append(parts[i])
            i += 1
    return joined
