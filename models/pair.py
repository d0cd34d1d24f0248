"""What vision-language networks have in common: how they are called, and their heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tokenfold.bundle.tasks import PairTask
from tokenfold.models.operators import EAGER, Operators
from tokenfold.models.reduction.matcher import Matcher
from tokenfold.models.reduction.pumer import PuMer


class HeadConfig(BaseModel):
    """One task's head.

    Attributes:
        classes: logits that come out; 1 for a score by itself, as a ranking head gives.
        hidden: width of `Linear, LayerNorm, GELU, Linear`; 0 for a single linear layer.
        eps: of that layer norm.
        scores: what its logits were trained to be: of answers that exclude each other (softmax), or
            each right or wrong by itself (sigmoid), as is usual for open questions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: int = Field(ge=1)
    hidden: int = Field(default=0, ge=0)
    eps: float = 1e-5
    scores: Literal["softmax", "sigmoid"] = "softmax"

    def build(self, inputs: int) -> nn.Module:
        """The head for so many inputs."""
        if not self.hidden:
            return nn.Linear(inputs, self.classes)
        return nn.Sequential(
            nn.Linear(inputs, self.hidden),
            nn.LayerNorm(self.hidden, self.eps),
            nn.GELU(),
            nn.Linear(self.hidden, self.classes),
        )

    def flops(self, inputs: int) -> int:
        """Multiply-accumulates."""
        if not self.hidden:
            return inputs * self.classes
        return inputs * self.hidden + self.hidden * self.classes


def images(task: PairTask) -> int:
    """Images that a task looks at."""
    return 2 if task == "reason" else 1


class Heads(nn.ModuleDict):
    """The heads of a network, by task. `reason` sees the pooled tokens of two images, joined."""

    def __init__(self, configs: Mapping[PairTask, HeadConfig], pooled: int) -> None:
        super().__init__(
            {task: config.build(images(task) * pooled) for task, config in configs.items()}
        )

    def logits(self, pooled: Tensor, task: PairTask) -> Tensor:
        """(B, pooled), or (B, 2 pooled) to reason -> (B, classes)."""
        out: Tensor = self[task](pooled)
        return out


def image_modality(embedding: nn.Embedding, second: bool | Tensor) -> Tensor:
    """(D), the modality embedding of a first or second image: rows 1 and 2, behind the text's.

    Args:
        second: see `PairNetwork.fuse`.
    """
    if isinstance(second, Tensor):
        return embedding.weight.index_select(0, second.reshape(1) + 1)[0]
    return embedding.weight[2 if second else 1]


class Fused(NamedTuple):
    """What becomes of a text with an image.

    Attributes:
        pooled: (B, P), what the heads see.
        text, image: (B, T) and (B, I) int64: where each token that came in ended up among the
            tokens of the last layer, -1 where it was dropped. In a network of two streams each is
            counted in its own; in a network of one stream both are counted in it, text first.
    """

    pooled: Tensor
    text: Tensor
    image: Tensor


class PairNetwork(Protocol):
    """A network that sees an image, or two, with a text.

    Images go through `patch_embed` and `embed_image` once, whatever the number of texts; `fuse`
    takes them together with a text; `heads` answer.
    """

    patch_embed: nn.Module
    heads: Heads

    def embed_image(
        self, patches: Tensor, grid: tuple[int, int], *, run: Operators = EAGER
    ) -> Tensor:
        """Patches (B, rows * columns, D) of `patch_embed` -> image tokens (B, I, D)."""
        ...

    def fuse(
        self,
        image: Tensor,
        ids: Tensor,
        text_size: Tensor | None = None,
        *,
        image_size: Tensor | None = None,
        second: bool | Tensor = False,
        plan: Sequence[int] | None = None,
        matchers: Sequence[Matcher | PuMer | None] | None = None,
        weighted: bool = True,
        run: Operators = EAGER,
    ) -> Fused:
        """Image tokens and a text through the layers in which they meet.

        Args:
            image: (B, I, D) of `embed_image`.
            ids: (B, T) int64.
            text_size: (B, T) float32, 1 for a token and 0 for padding, which is at the end.
            image_size: (B, I), likewise; the class token counts.
            second: whether it is the second image of a pair; an int64 scalar in a graph.
            plan: counts per layer, flat: one of a similarity matcher, three of PuMer (prune,
                merge, text); None reduces nothing.
            matchers: one per layer, None for a layer that does not reduce.
            weighted: whether tokens merge by size and attention counts sizes (ToMe), or merge by
                plain mean and all count as one (PuMer as published).
            run: who runs attention and reduction.
        """
        ...
