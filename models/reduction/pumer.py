"""PuMer: text-informed pruning, then merging within each modality, as one choice of slots.

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
    """Slots (B, N) that keep all but the least important tokens, by falling importance.

    Absent tokens go too, and are not counted: how many tokens stay does not depend on padding.

    Args:
        importance: (B, N), 0 or more; the lowest index wins ties.
        size: (B, N), 0 for an absent token.
        pruned: tokens to drop, 0 or more; one token stays.
    """
    place = rank(importance.masked_fill(size == 0, ABSENT))
    present = (size > 0).sum(dim=1, keepdim=True)
    return torch.where(place < (present - pruned).clamp_min(1), place, DROPPED)


@dataclass(frozen=True)
class PuMer:
    """Text tokens lead, image tokens follow; both stay apart.

    The image tokens that the text attends to least are dropped. Those that stay, now in falling
    order of importance, merge by ToMe's rule, the first protected; so do the text tokens, whose
    first is their class token. As published, the class token of an image is a token like others.
    """

    @property
    def merge(self) -> ToMe:
        """The rule by which tokens of one modality merge."""
        return ToMe(class_token=True)

    def left(self, text: int, image: int, counts: Sequence[int]) -> tuple[int, int]:
        """Text and image tokens that are left when asked for counts (prune, merge, text)."""
        return pumer_widths(text, image, counts)

    def __call__(
        self, metric: Tensor, size: Tensor, importance: Tensor, text: int, counts: Sequence[int]
    ) -> Tensor:
        """Slots (B, N) of one layer.

        Args:
            metric: (B, N, C).
            size: (B, N), 0 for no token.
            importance: (B, N), read where the image is.
            text: leading tokens that are text, 0 or more.
            counts: image tokens to prune, image tokens to merge, text tokens to merge.
        """
        pruned, merged, words = counts
        text_after, _ = self.left(text, metric.shape[1] - text, counts)
        parts = []
        if text:
            parts.append(self.merge(metric[:, :text], size[:, :text], words))
        image = metric.shape[1] - text
        pruned = max(pruned, 0)
        keep = max(image - pruned, 1)
        merged = clamp(merged, keep, 1)
        if image and keep == image and not merged:
            # Nothing goes, so nothing moves, whatever becomes of the text.
            parts.append(identity(metric.shape[0], image, metric.device) + text_after)
        elif image:
            kept = prune(importance[:, text:], size[:, text:], pruned)
            stays = kept != DROPPED
            # Where each kept place comes from: the inverse of the slots. Padding leaves places
            # behind the last kept token, which are filled by tokens that count as absent.
            order = kept.masked_fill(~stays, image).argsort(dim=-1, stable=True)[:, :keep]
            index = order.unsqueeze(-1).expand(-1, -1, metric.shape[-1])
            among = self.merge(
                metric[:, text:].gather(1, index),
                (size[:, text:] * stays).gather(1, order),
                merged,
            )
            slots = compose(kept, among)
            parts.append(torch.where(slots == DROPPED, slots, slots + text_after))
        return torch.cat(parts, dim=1)
