"""Manifests of tiny networks whose levels are measured without graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenfold.bundle.manifest import GRAPHS, AnyWorkload, Kind, Level, Manifest, StoredFile
from tokenfold.bundle.schedule import flops_ratio
from tokenfold.bundle.text import TOKENIZER
from tokenfold.bundle.workload import Plan


def manifest(
    kind: Kind, workload: AnyWorkload, plans: Mapping[str, Plan], **fields: Any
) -> Manifest:
    """Return a manifest with one level per plan; the first level is the default.

    Args:
        fields: other fields of the manifest, which depend on the kind.
    """
    return Manifest(
        name="tiny",
        source="a test",
        precision="fp32",
        workload=workload,
        levels={
            name: Level(
                reduction=1 - flops_ratio(workload, plan),
                plan=plan,
                flops_ratio=flops_ratio(workload, plan),
                tokens_out=workload.widths(plan)[-1],
            )
            for name, plan in plans.items()
        },
        default_level=next(iter(plans)),
        versions={},
        files={name: StoredFile(sha256="0" * 64, bytes=0) for name in (*GRAPHS[kind], TOKENIZER)},
        **fields,
    )
