"""Calibrates tiny models for policies that need to know their heads."""

from __future__ import annotations

from typing import Any

from kvfidelity.cache.calibration import calibrate
from kvfidelity.cache.policies import Policy

#: The text: token ids.
TEXT = range(3, 50)


def calibrated(model: Any, policy: Policy) -> Any:
    """The model, measured on TEXT if the policy needs it."""
    if policy.needs_calibration:
        calibrate(model, TEXT)
    return model
