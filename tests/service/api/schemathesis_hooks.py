"""Hooks for schemathesis: valid images, which the schema cannot describe."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies as st

from tests.service.standin import picture

_IMAGES = st.sampled_from(
    [picture("red"), picture("blue", style="JPEG"), picture("lime", (1, 1), "WEBP")]
)

for kind in ("image/jpeg", "image/png", "image/webp"):
    schemathesis.openapi.media_type(kind, _IMAGES)
schemathesis.openapi.format("byte", _IMAGES.map(lambda data: base64.b64encode(data).decode()))
