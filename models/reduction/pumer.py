"""PuMer: text-informed pruning, then merging within each modality, composed into one slots tensor.

Cao, Paranjape and Hajishirzi, "PuMer: Pruning and Merging Tokens for Efficient Vision Language
Models" (ACL 2023), section 3. Written from the formulae.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfold.bundle.pair_workload import pumer_widths
from tokenfold.bundle.workload import clamp
from tokenfold.models.reduction.matcher import ABSENT, rank
from tokenfold.models.reduction.slots import DROPPED, compose, identity
from tokenfold.models.reduction.tome import ToMe


def prune(importance: Tensor, size: Tensor, pruned: int) -> Tensor:
    """Return slots (B, N) that drop the least important tokens and sort the others by importance.

    Absent tokens are dropped too, and do not count: padding does not change how many tokens stay.

    Args:
        importance: (B, N), 0 or more; the lowest index wins ties.
        size: (B, N), 0 for an absent token.
        pruned: number of tokens to drop, 0 or more; at least one token stays.
    """
    position = rank(importance.masked_fill(size == 0, ABSENT))
    present = (size > 0).sum(dim=1, keepdim=True)
    return torch.where(position < (present - pruned).clamp_min(1), position, DROPPED)


@dataclass(frozen=True)
class PuMer:
    """Matcher for text tokens followed by image tokens, which are reduced separately.

    The image tokens that the text attends to least are dropped. The others, sorted by falling
    importance, merge by ToMe's rule, with the first one protected. The text tokens merge by the
    same rule; their first one is the class token. As published, the class token of an image is not
    special.
    """

    @property
    def merge(self) -> ToMe:
        """Matcher that merges the tokens of one modality."""
        return ToMe(class_token=True)

    def left(self, text: int, image: int, counts: Sequence[int]) -> tuple[int, int]:
        """Return the text and image tokens that are left, for counts (prune, merge, text)."""
        return pumer_widths(text, image, counts)

    def __call__(
        self, metric: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int]
    ) -> Tensor:
        """Return the slots (B, N) of one layer.

        Args:
            metric: (B, N, C).
            size: (B, N), 0 for an absent token.
            importance: (B, N), used for image tokens only.
            text: number of leading tokens that are text, 0 or more.
            counts: image tokens to prune, image tokens to merge, text tokens to merge.
        """
        pruned, merged, merged_text = counts
        text_after, _ = self.left(text, metric.shape[1] - text, counts)
        parts = []
        if text:
            parts.append(self.merge(metric[:, :text], size[:, :text], merged_text))
        image = metric.shape[1] - text
        pruned = max(pruned, 0)
        keep = max(image - pruned, 1)
        merged = clamp(merged, keep, 1)
        if image and keep == image and not merged:
            # Nothing is removed, so image tokens keep their order.
            parts.append(identity(metric.shape[0], image, metric.device) + text_after)
        elif image:
            kept = prune(importance[:, text:], size[:, text:], pruned)
            stays = kept != DROPPED
            # The source of each kept position: the inverse of the slots. Padding leaves positions
            # after the last kept token, which tokens that count as absent fill.
            order = kept.masked_fill(~stays, image).argsort(dim=-1, stable=True)[:, :keep]
            index = order.unsqueeze(-1).expand(-1, -1, metric.shape[-1])
            merged_slots = self.merge(
                metric[:, text:].gather(1, index),
                (size[:, text:] * stays).gather(1, order),
                merged,
            )
            slots = compose(kept, merged_slots)
            parts.append(torch.where(slots == DROPPED, slots, slots + text_after))
        return torch.cat(parts, dim=1)
