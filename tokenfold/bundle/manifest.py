"""The manifest: what a bundle says of itself, and the names of its files. No torch in here."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenfold.bundle.document import Document, Name, Share
from tokenfold.bundle.pair_workload import MeterWorkload, PairWorkload, ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.tasks import PairTask, Task
from tokenfold.bundle.text import Template
from tokenfold.bundle.workload import DualWorkload, PlanError, Shape, Workload

MANIFEST = "manifest.json"
MODEL = "model.onnx"
VISION = "vision.onnx"
JOINT = "joint.onnx"
IMAGE = "image.onnx"
TEXT = "text.onnx"
TOKENIZER = "tokenizer.json"

Precision = Literal["fp32", "fp16", "int8"]
Scoring = Literal["softmax", "sigmoid"]
"""How logits become scores: of answers that exclude each other, or each by itself."""
Kind = Literal["classifier", "pair", "dual"]
"""What a network takes: images, images with texts, or either of them by itself."""
AnyWorkload = Annotated[
    Workload | ViltWorkload | MeterWorkload | DualWorkload, Field(discriminator="kind")
]

GRAPHS: dict[Kind, tuple[str, ...]] = {
    "classifier": (MODEL,),
    "pair": (VISION, JOINT),
    "dual": (IMAGE, TEXT),
}
"""The graphs of a bundle."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"{path!r} is not a path inside the bundle")
    return path


FilePath = Annotated[str, AfterValidator(_inside)]


class Level(Document):
    """A named point between speed and accuracy.

    Attributes:
        reduction: the requested fraction of FLOPs to remove, 0 to 1.
        plan: tokens each layer removes; with a text, of the nominal image and the longest text.
        flops_ratio: FLOPs left, of the unreduced network's.
        tokens_out: tokens after the last layer.
    """

    reduction: Share
    plan: tuple[int, ...]
    flops_ratio: float = Field(gt=0.0, le=1.0)
    tokens_out: int = Field(ge=1)


class StoredFile(Document):
    """A file's checksum and length."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TextSpec(Document):
    """Which texts a network takes.

    Attributes:
        most_tokens: of the longest, special tokens included; longer ones are cut.
        padding: the id that fills every text up to `most_tokens`, with size 1, for a network that
            was trained to look at it (SigLIP); None where a text runs at its own length.
    """

    most_tokens: int = Field(ge=1)
    padding: int | None = Field(default=None, ge=0)


class Similarity(Document):
    """How vectors of a dual encoder compare: a logit is `scale * cosine + bias`.

    Attributes:
        width: numbers in a vector.
        scale: already out of the logarithm in which it was learned.
        scores: how logits become scores, of texts that exclude each other, or each by itself.
        template: what makes a text of a label for zero-shot classification, at its `{}`.
    """

    width: int = Field(ge=1)
    scale: float = Field(gt=0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)
    scores: Scoring
    template: Template = "{}"


class Manifest(Document):
    """What a bundle says of itself.

    Attributes:
        format: of this file; another number is refused.
        name: what the service calls the model.
        tasks: what the network can be asked, with the labels in the order of the logits; no labels
            for a single logit that ranks. Of two labels to match or reason, the second is yes.
        scores: how a task's logits become scores, where that is not softmax.
        source: what was exported.
        workload: the network, as the schedule sees it; turns any reduction into a plan.
        shape: how the plans spread over the layers.
        proportional: whether attention counts token sizes; of a network that reduces images alone.
        weighted: whether tokens merge by size and attention counts sizes; of a network with texts.
        text: of a network with texts.
        similarity: of a dual encoder.
        levels: by name, from the least reduced to the most.
        default_level: for a request that names none.
        versions: of the packages that made it.
        deviation: largest difference from PyTorch that the export saw, per level.
        files: every other file, by its path in the bundle.
    """

    format: Literal[2] = 2
    name: Name
    tasks: dict[Task, tuple[str, ...]] = Field(min_length=1)
    scores: dict[Task, Scoring] = Field(default_factory=dict)
    source: str
    precision: Precision
    workload: AnyWorkload
    shape: Shape = "constant"
    proportional: bool = True
    weighted: bool = True
    text: TextSpec | None = None
    similarity: Similarity | None = None
    preprocess: Preprocess
    levels: dict[Name, Level] = Field(min_length=1)
    default_level: Name
    versions: dict[str, str]
    deviation: dict[str, float] = Field(default_factory=dict)
    files: dict[FilePath, StoredFile]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_level not in self.levels:
            raise ValueError(f"the default level {self.default_level!r} is not among the levels")
        kind = self.kind
        for name in self._needed:
            if name not in self.files:
                raise ValueError(f"{name} is not listed")
        if (kind == "classifier") != (self.text is None):
            raise ValueError("a network has texts if it sees them, and only then")
        if (kind == "dual") != (self.similarity is not None):
            raise ValueError("a dual encoder says how its vectors compare, and nothing else does")
        if kind != "pair" and self.preprocess.resize == "bounded":
            raise ValueError("a network of this kind takes images of one size")
        if kind == "pair" and self.text is not None and self.text.padding is not None:
            raise ValueError("padding is looked at by dual encoders alone")
        if kind == "dual" and self.scores:
            raise ValueError("of a dual encoder similarity says how it scores")
        asked = set(self.tasks)
        only = {"classifier": {"classify"}, "dual": {"embed"}}.get(kind)
        if asked != only if only else asked & {"classify", "embed"}:
            raise ValueError(f"a network of this kind does not {', '.join(self.tasks)}")
        unknown = sorted(set(self.scores) - set(self.tasks))
        if unknown:
            raise ValueError(f"scores of {', '.join(unknown)}, which is no task here")
        for name, level in self.levels.items():
            try:
                tokens = self.workload.widths(level.plan)[-1]
            except PlanError as error:
                raise ValueError(f"level {name}: {error}") from error
            ratio = flops_ratio(self.workload, level.plan)
            if tokens != level.tokens_out or abs(ratio - level.flops_ratio) > 1e-6:
                raise ValueError(f"level {name}: tokens or FLOPs do not follow from its plan")
        return self

    @property
    def kind(self) -> Kind:
        """What the network takes."""
        if isinstance(self.workload, PairWorkload):
            return "pair"
        return "dual" if isinstance(self.workload, DualWorkload) else "classifier"

    @property
    def _needed(self) -> tuple[str, ...]:
        """Files without which the network is not whole."""
        graphs = GRAPHS[self.kind]
        return graphs if self.kind == "classifier" else (*graphs, TOKENIZER)

    @property
    def fingerprint(self) -> str:
        """What outputs depend on: hex of a sha256 that differs where the network does.

        It covers the graphs with their weights, the tokenizer, and how images and texts are made
        ready; neither names and levels nor what was measured. Vectors of two bundles can be
        compared if their fingerprints are equal.
        """
        stored = [
            f"{name} {file.sha256}"
            for name, file in sorted(self.files.items())
            if name.startswith(self._needed)
        ]
        # Without defaults: a field that is added one day leaves the old bundles what they were.
        ready = [
            part.model_dump_json(exclude_defaults=True)
            for part in (self.preprocess, self.text)
            if part is not None
        ]
        return hashlib.sha256("\n".join([*stored, *ready]).encode()).hexdigest()

    @property
    def cpu_only(self) -> str | None:
        """Why no GPU is to run the network, for people; None if one may."""
        if self.precision == "int8":
            return f"{self.name} is an int8 bundle, which is for the CPU"
        return None

    @property
    def pair_tasks(self) -> list[PairTask]:
        """Those of its tasks that are on an image and a text."""
        return [task for task in self.tasks if task != "classify" and task != "embed"]

    def plan(self, level: Level, *, text: int, image: int) -> tuple[int, ...]:
        """A level's plan for a text and an image of so many tokens.

        Raises:
            TypeError: the network sees images alone, whose number of tokens is fixed.
        """
        if not isinstance(self.workload, PairWorkload):
            raise TypeError(f"{self.name} takes no texts")
        own = self.workload.sized(text=text, image=image)
        return level.plan if own == self.workload else plan_for(own, level.reduction, self.shape)

    def scoring(self, task: Task) -> Scoring:
        """How a task's logits become scores."""
        return self.scores.get(task, "softmax")
