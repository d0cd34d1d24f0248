"""A synthetic world of coloured shapes, for training and testing a tiny vision-language model.

Everything is a function of a seed: scenes of two to five things, their pixels, and English texts
about them with known answers.
"""

from tokenfold.scenes.drawing import cover, draw, png
from tokenfold.scenes.language import (
    ANSWERS,
    LABELS,
    WORDS,
    caption,
    hypothesis,
    question,
    true_caption,
)
from tokenfold.scenes.pairs import statement
from tokenfold.scenes.phrases import Text
from tokenfold.scenes.world import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Pair,
    Scene,
    Thing,
    pair,
    scene,
)

__all__ = [
    "ANSWERS",
    "COLOURS",
    "HELD_OUT",
    "LABELS",
    "SHAPES",
    "SIZE",
    "SIZES",
    "TEXTURES",
    "WORDS",
    "Pair",
    "Scene",
    "Text",
    "Thing",
    "caption",
    "cover",
    "draw",
    "hypothesis",
    "pair",
    "png",
    "question",
    "scene",
    "statement",
    "true_caption",
]
