"""Manifests: the description of a bundle, and the names of its files."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tokenfold.bundle.document import Document, Name, Share, VersionedDocument
from tokenfold.bundle.meter_workload import MeterWorkload
from tokenfold.bundle.pair_workload import PairWorkload, ViltWorkload
from tokenfold.bundle.preprocess import Preprocess
from tokenfold.bundle.schedule import flops_ratio, plan_for
from tokenfold.bundle.tasks import PairTask, Task
from tokenfold.bundle.text import TOKENIZER as TOKENIZER  # one of the bundle's files
from tokenfold.bundle.text import Template
from tokenfold.bundle.workload import DualWorkload, PlanError, Shape, Workload

MANIFEST = "manifest.json"
MODEL = "model.onnx"
VISION = "vision.onnx"
JOINT = "joint.onnx"
IMAGE = "image.onnx"
TEXT = "text.onnx"

Precision = Literal["fp32", "fp16", "int8"]
Scoring = Literal["softmax", "sigmoid"]
"""Function from logits to scores: for answers that exclude each other, or for independent ones."""
Kind = Literal["classifier", "pair", "dual"]
"""Kind of network: takes images, image-text pairs, or images and texts separately."""
AnyWorkload = Annotated[
    Workload | ViltWorkload | MeterWorkload | DualWorkload, Field(discriminator="kind")
]

GRAPHS: dict[Kind, tuple[str, ...]] = {
    "classifier": (MODEL,),
    "pair": (VISION, JOINT),
    "dual": (IMAGE, TEXT),
}
"""File names of the graphs, by kind of network."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts:
        raise ValueError(f"{path!r} is not a path inside the bundle")
    return path


FilePath = Annotated[str, AfterValidator(_inside)]


class Level(Document):
    """A named trade-off between speed and accuracy.

    Attributes:
        reduction: requested fraction of FLOPs to remove, 0 to 1.
        plan: tokens that each layer removes; for an image-text network, of an image of the usual
            size with the longest text.
        flops_ratio: FLOPs relative to the unreduced network, (0, 1].
        tokens_out: tokens after the last layer.
    """

    reduction: Share
    plan: tuple[int, ...]
    flops_ratio: float = Field(gt=0.0, le=1.0)
    tokens_out: int = Field(ge=1)


class StoredFile(Document):
    """Checksum and length of a file."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class TextSpec(Document):
    """Limits of the texts that a network takes.

    Attributes:
        most_tokens: maximum length, special tokens included; longer texts are truncated.
        padding: token id that fills every text up to `most_tokens`, with size 1, for a network
            that was trained to attend to padding (SigLIP); None for texts of any length.
    """

    most_tokens: int = Field(ge=1)
    padding: int | None = Field(default=None, ge=0)


class Similarity(Document):
    """Comparison of a dual encoder's vectors: a logit is `scale * cosine + bias`.

    Attributes:
        width: length of a vector.
        scale: scale of the cosine, not its logarithm.
        scores: function from logits to scores.
        template: text for zero-shot classification, in which a label replaces `{}`.
    """

    width: int = Field(ge=1)
    scale: float = Field(gt=0, allow_inf_nan=False)
    bias: float = Field(default=0.0, allow_inf_nan=False)
    scores: Scoring
    template: Template = "{}"


class Manifest(VersionedDocument):
    """Description of a bundle.

    Attributes:
        format: format number of this file; see `tokenfold.bundle.document.VersionedDocument`.
        name: name of the model in the service.
        tasks: tasks of the network, with their labels in the order of the logits; no labels for a
            ranking head with a single logit. The second of two labels of `match` or `reason` is
            the positive one.
        scores: functions from logits to scores, of tasks that do not use softmax.
        source: name of the checkpoint that was exported.
        workload: sizes of the network, from which the schedule computes plans.
        shape: distribution of the removed tokens over the layers.
        proportional: whether attention counts token sizes, in an image network.
        weighted: whether tokens merge by size and attention counts sizes, in an image-text network.
        text: limits of texts, of a network that takes them.
        similarity: comparison of vectors, of a dual encoder.
        levels: levels by name, from the least reduced to the most.
        default_level: level for requests that choose none.
        versions: versions of the packages used to build the bundle.
        deviation: largest difference from PyTorch at export, per level.
        files: all other files, by path in the bundle.
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

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Convert format 1, which had image classifiers only, with the field `labels`."""
        fields = {key: value for key, value in content.items() if key not in ("task", "labels")}
        workload = {**content.get("workload", {}), "kind": "image"}
        return {**fields, "tasks": {"classify": content.get("labels")}, "workload": workload}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_level not in self.levels:
            raise ValueError(f"the default level {self.default_level!r} is not among the levels")
        kind = self.kind
        for name in self._required_files:
            if name not in self.files:
                raise ValueError(f"{name} is not listed in files")
        if (kind == "classifier") != (self.text is None):
            raise ValueError(
                "the field text is required for networks with texts, and not allowed for others"
            )
        if (kind == "dual") != (self.similarity is not None):
            raise ValueError(
                "the field similarity is required for dual encoders, and not allowed for others"
            )
        if kind != "pair" and self.preprocess.resize == "bounded":
            raise ValueError(
                f"resize 'bounded' is for the kind pair; the kind {kind} takes images of one size"
            )
        if kind == "pair" and self.text is not None and self.text.padding is not None:
            raise ValueError("the field text.padding is for dual encoders")
        if kind == "dual" and self.scores:
            raise ValueError(
                "the field scores is not for dual encoders; they have similarity.scores"
            )
        tasks = set(self.tasks)
        required_tasks = {"classifier": {"classify"}, "dual": {"embed"}}.get(kind)
        if tasks != required_tasks if required_tasks else tasks & {"classify", "embed"}:
            raise ValueError(f"the kind {kind} does not have the tasks {', '.join(self.tasks)}")
        unknown = sorted(set(self.scores) - set(self.tasks))
        if unknown:
            raise ValueError(
                f"the field scores has {', '.join(unknown)}, which the field tasks lacks"
            )
        for name, level in self.levels.items():
            try:
                tokens = self.workload.widths(level.plan)[-1]
            except PlanError as error:
                raise ValueError(f"level {name}: {error}") from error
            ratio = flops_ratio(self.workload, level.plan)
            if tokens != level.tokens_out or abs(ratio - level.flops_ratio) > 1e-6:
                raise ValueError(
                    f"level {name}: tokens_out or flops_ratio differ from those of its plan"
                )
        return self

    @property
    def kind(self) -> Kind:
        """Kind of network."""
        if isinstance(self.workload, PairWorkload):
            return "pair"
        return "dual" if isinstance(self.workload, DualWorkload) else "classifier"

    @property
    def _required_files(self) -> tuple[str, ...]:
        """Names of the files that the network needs."""
        graphs = GRAPHS[self.kind]
        return graphs if self.kind == "classifier" else (*graphs, TOKENIZER)

    @property
    def fingerprint(self) -> str:
        """Identity of the network: hex of a sha256 over everything that outputs depend on.

        It covers the graphs with their weights, the tokenizer, and the pre-processing of images and
        texts, but not names, levels and measurements. Vectors of two bundles can be compared if
        their fingerprints are equal.
        """
        stored = [
            f"{name} {file.sha256}"
            for name, file in sorted(self.files.items())
            if name.startswith(self._required_files)
        ]
        # Without defaults, so that a new field does not change the fingerprint of old bundles.
        preprocessing = [
            part.model_dump_json(exclude_defaults=True)
            for part in (self.preprocess, self.text)
            if part is not None
        ]
        return hashlib.sha256("\n".join([*stored, *preprocessing]).encode()).hexdigest()

    @property
    def cpu_only(self) -> str | None:
        """Reason why the network runs on CPUs only, for people; None if it does not."""
        if self.precision == "int8":
            return f"{self.name} is an int8 bundle, which is for the CPU"
        return None

    @property
    def pair_tasks(self) -> list[PairTask]:
        """Tasks that take an image and a text."""
        return [task for task in self.tasks if task != "classify" and task != "embed"]

    def plan(self, level: Level, *, text: int, image: int) -> tuple[int, ...]:
        """Return a level's plan for an image with a text.

        Args:
            text, image: their numbers of tokens.

        Raises:
            TypeError: the network is not an image-text network.
        """
        if not isinstance(self.workload, PairWorkload):
            raise TypeError(f"{self.name} takes no texts")
        sized = self.workload.sized(text=text, image=image)
        if sized == self.workload:
            return level.plan
        return plan_for(sized, level.reduction, self.shape)

    def scoring(self, task: Task) -> Scoring:
        """Return the function from a task's logits to scores."""
        return self.scores.get(task, "softmax")
