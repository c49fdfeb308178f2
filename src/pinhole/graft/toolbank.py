"""Tools that no catalogue has, so that a model learns to read schemas and not our names.

Each entry is a made-up tool: synonyms for its name and its arguments, what each argument takes, and
how people ask for it. ``LESSONS`` are trained on; ``EXAM`` tools, words and frames appear in no lesson.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Invented:
    """``args`` maps synonyms ("item|picture") to a kind: ``#``, ``text``, ``number``, or choices "a/b/c"."""

    names: str
    about: str
    args: Mapping[str, str]
    frames: Sequence[str]


LESSONS: Sequence[Invented] = (
    Invented(
        "price|cost|get_price",
        "what an item costs",
        {"item|picture|ref": "#"},
        ("how much is {0}?", "price of {0}", "what does {0} cost?", "what's the price of {0}?", "is {0} expensive?", "tell me the price of {0}"),
    ),
    Invented(
        "buy|order|purchase",
        "order an item",
        {"item|what|ref": "#", "count|number|pieces": "number"},
        (
            "buy {1} of {0}",
            "order {0}, {1} pieces",
            "i'd like to buy {1} times {0}",
            "purchase {1} pieces of {0}",
            "{1} of {0} please, i buy them",
            "order {1} of {0}",
        ),
    ),
    Invented(
        "share|send|forward",
        "send a picture to somebody",
        {"item|picture": "#", "to|person|recipient": "person"},
        (
            "share {0} with {1}",
            "send {0} to {1}",
            "forward {0} to {1}",
            "can you send {1} {0}?",
            "{1} should see {0}, send it",
            "share it with {1}: {0}",
        ),
    ),
    Invented(
        "save|keep|bookmark",
        "keep a picture on a board",
        {"item|picture|ref": "#", "board|list|into": "text"},
        ("save {0} to {1}", "keep {0} on my board {1}", "put {0} on {1}", "bookmark {0} in {1}", "add {0} to the board {1}", "save {0} under {1}"),
    ),
    Invented(
        "palette|colours|colors",
        "main colours of a picture",
        {"item|picture|of": "#"},
        ("what colours does {0} have?", "palette of {0}", "colours of {0}", "which colours are in {0}?", "extract the colours of {0}"),
    ),
    Invented(
        "translate|translation",
        "translate words",
        {"text|words|phrase": "text", "to|language|into": "english/french/german/spanish"},
        ("translate {0} to {1}", "what is {0} in {1}?", "how do you say {0} in {1}?", "{0} in {1} please", "give me the {1} word for {0}"),
    ),
    Invented(
        "resize|scale",
        "change the size of a picture",
        {"item|picture": "#", "width|pixels|size": "number"},
        ("resize {0} to {1}", "make {0} {1} pixels wide", "scale {0} to {1} pixels", "i need {0} at {1} pixels", "change the width of {0} to {1}"),
    ),
    Invented(
        "download|export|save_file",
        "get a file of a picture",
        {"item|picture|ref": "#", "format|type|as": "png/svg/pdf"},
        ("download {0} as {1}", "export {0} to {1}", "i want {0} as {1}", "give me {0} as a {1} file", "{1} of {0} please", "get {0} in {1}"),
    ),
    Invented(
        "rate|stars|score",
        "rate a picture",
        {"item|picture": "#", "stars|points|value": "number"},
        ("rate {0} with {1} stars", "give {0} {1} stars", "{1} stars for {0}", "my rating of {0} is {1}", "{0} deserves {1} stars"),
    ),
    Invented(
        "report|flag|complain",
        "report a bad picture",
        {"item|picture": "#", "reason|why": "wrong/rude/broken"},
        ("report {0}, it is {1}", "flag {0} as {1}", "{0} is {1}, report it", "please report {0} because it is {1}", "complain about {0}: {1}"),
    ),
    Invented(
        "weather|forecast",
        "weather in a city",
        {"city|place|where": "city"},
        (
            "what's the weather in {0}?",
            "weather in {0}",
            "how is the weather in {0}?",
            "forecast for {0}",
            "will it rain in {0}?",
            "is it sunny in {0}?",
        ),
    ),
    Invented(
        "hide|remove|dismiss",
        "never show a picture again",
        {"item|picture|ref": "#"},
        ("hide {0}", "don't show {0} again", "remove {0}", "i don't want to see {0}", "dismiss {0}", "get rid of {0}"),
    ),
    Invented(
        "compare|versus|difference",
        "compare two pictures",
        {"first|a|left": "#", "second|b|right": "#"},
        ("compare {0} and {1}", "compare {0} with {1}", "what is the difference between {0} and {1}?", "{0} versus {1}", "{0} or {1}, compare them"),
    ),
    Invented(
        "count|how_many|total",
        "how many pictures there are",
        {"text|query|of": "text"},
        ("how many {0} are there?", "count {0}", "number of {0}", "how many {0} do you have?", "count the pictures of {0}"),
    ),
    Invented(
        "remind|reminder|alarm",
        "remind me later",
        {"text|what|about": "text", "when|day|on": "monday/friday/tomorrow/tonight"},
        (
            "remind me of {0} on {1}",
            "remind me about {0} {1}",
            "set a reminder for {0}, {1}",
            "reminder: {0}, {1}",
            "{1} i want to think of {0}, remind me",
        ),
    ),
    Invented(
        "rename|retitle",
        "give a board a new name",
        {"board|old|list": "text", "name|new|to": "text"},
        ("rename {0} to {1}", "rename the board {0} to {1}", "call the board {0} {1} from now on", "change the name of {0} to {1}"),
    ),
    Invented(
        "print|print_out",
        "print a picture",
        {"item|picture": "#", "paper|size|on": "a3/a4/a5"},
        ("print {0} on {1}", "print {0}, {1}", "i want {0} printed on {1}", "{1} print of {0}", "make a print of {0} on {1}"),
    ),
    Invented(
        "follow|subscribe",
        "follow an artist",
        {"name|artist|who": "person"},
        ("follow {0}", "subscribe to {0}", "i want to follow {0}", "keep me posted about {0}", "follow the artist {0}"),
    ),
    Invented(
        "popular|trending|top",
        "what many people like now",
        {"category|kind|section": "text"},
        ("what is popular in {0}?", "trending {0}", "top {0}", "what do people like in {0}?", "popular {0} please", "what's hot in {0}?"),
    ),
    Invented(
        "crop|cut",
        "cut a picture to a shape",
        {"item|picture": "#", "shape|form|to": "square/circle/wide"},
        ("crop {0} to a {1}", "cut {0} into a {1}", "make {0} a {1}", "crop {0}, {1}", "i need {0} as a {1}"),
    ),
    Invented(
        "rotate|turn",
        "turn a picture",
        {"item|picture": "#", "degrees|angle|by": "number"},
        ("rotate {0} by {1}", "turn {0} {1} degrees", "rotate {0} {1} degrees", "turn {0} by {1}", "{0} rotated by {1} please"),
    ),
    Invented(
        "recipe|cook",
        "a recipe with something",
        {"text|with|ingredient": "text"},
        ("a recipe with {0}", "what can i cook with {0}?", "recipe for {0}", "how do i cook {0}?", "give me a recipe with {0}"),
    ),
    Invented(
        "comment|note|annotate",
        "write a note on a picture",
        {"item|picture": "#", "text|note|words": "text"},
        ("comment on {0}: {1}", "write {1} on {0}", "add the note {1} to {0}", "note for {0}: {1}", "put the comment {1} under {0}"),
    ),
    Invented(
        "history|recent|seen",
        "what was looked at",
        {"day|when|on": "monday/friday/today/yesterday"},
        ("what did i look at {0}?", "my history of {0}", "show what i saw {0}", "pictures i opened {0}", "history, {0}"),
    ),
)

EXAM: Sequence[Invented] = (
    Invented(
        "licence_check",
        "may a picture be used for a purpose",
        {"image": "#", "purpose": "commercial/personal/teaching"},
        ("am i allowed to use {0} for {1} purposes?", "usage rights of {0}: {1}", "check whether {0} permits {1} use"),
    ),
    Invented(
        "frame_shop",
        "frame a picture",
        {"artwork": "#", "material": "oak/steel/glass"},
        ("put {0} behind a frame of {1}", "i'd have {0} framed in {1}", "framing {0} with {1}"),
    ),
    Invented("mirror", "flip a picture", {"target": "#"}, ("flip {0} left to right", "mirror {0}", "i'd like the reflection of {0}")),
    Invented(
        "gift_wrap",
        "wrap an article as a present",
        {"article": "#", "for_whom": "person"},
        ("wrap {0} as a present to {1}", "{1} has a birthday, wrap {0}", "gift wrapping of {0}, to {1}"),
    ),
    Invented("define", "meaning of a word", {"term": "text"}, ("meaning of {0}", "define {0}", "explain the word {0}")),
    Invented(
        "stock_level",
        "how many are left in a warehouse",
        {"product": "#", "warehouse": "city"},
        ("how many of {0} remain in {1}?", "stock of {0} at the {1} depot", "does {1} still stock {0}?"),
    ),
    Invented(
        "blend",
        "merge two pictures into one",
        {"base": "#", "overlay": "#"},
        ("blend {0} and {1} together", "lay {1} over {0}", "merge {0} with overlay {1}"),
    ),
    Invented(
        "brighten",
        "make a picture lighter",
        {"photo": "#", "percent": "number"},
        ("brighten {0} by {1} percent", "lighten {0}, {1} percent", "{0} is gloomy, brighten it by {1}"),
    ),
    Invented(
        "podcast",
        "audio about a subject",
        {"topic": "text"},
        ("play an audio episode on {0}", "podcast covering {0}", "something to listen to on {0}"),
    ),
    Invented(
        "train_times",
        "next trains to a city",
        {"destination": "city"},
        ("next train towards {0}", "when does the train leave to {0}?", "departures to {0}"),
    ),
)

PEOPLE = (
    ("anna", "tom", "maria", "my sister", "my boss", "john", "lena", "the team", "peter", "my mother", "ali", "sofia"),
    ("grandpa", "beatrice", "yusuf", "my neighbour"),
)
CITIES = (("paris", "london", "rome", "tokyo", "berlin", "madrid", "oslo", "new york", "cairo", "lima"), ("vienna", "dublin", "seoul", "boston"))


def schema(tool: Invented, rng: random.Random | None = None) -> Schema:
    """The function schema, under the first names, or under names drawn by ``rng``."""
    draw = rng.choice if rng else (lambda names: names[0])
    properties = {draw(names.split("|")): _property(kind) for names, kind in tool.args.items()}
    return {
        "name": draw(tool.names.split("|")),
        "description": tool.about,
        "parameters": {"type": "object", "properties": properties, "required": list(properties)},
    }


def _property(kind: str) -> dict[str, Any]:
    if kind == "#":
        return {"type": "string", "pattern": "^#[0-9]{1,3}$"}
    if kind == "number":
        return {"type": "integer"}
    if "/" in kind:
        return {"type": "string", "enum": kind.split("/")}
    return {"type": "string"}


def value(kind: str, rng: random.Random, held: bool, subject: str, reference: str) -> Any:
    """Something that an argument of this kind may hold."""
    if kind == "#":
        return reference
    if kind == "number":
        return rng.choice((2, 3, 4, 5, 6, 8, 10, 12, 20, 45, 90, 100, 200, 300, 400, 500, 640, 800, 1000))
    if kind == "person":
        return rng.choice(PEOPLE[held])
    if kind == "city":
        return rng.choice(CITIES[held])
    return rng.choice(kind.split("/")) if "/" in kind else subject
