"""The arms of a fine-tuning: what a training shows. Nothing heavy is imported."""

from __future__ import annotations

from kvfidelity.cache.positions import PositionMode

#: In tables and claims, the arm of a model that is not fine-tuned.
NO_ARM = "none"
#: Arms in which nothing is evicted: the training as such, and jumps of positions alone.
CONTROL, SKIPS = "control", "skips"
#: The others are position modes: evictions, with positions as under that mode.
ARMS = (CONTROL, *(mode.value for mode in PositionMode), SKIPS)
#: Losses: divergence from the base model with the full cache, or of the data set's own reply.
KL, CROSS_ENTROPY = "kl", "cross_entropy"
LOSSES = (KL, CROSS_ENTROPY)


def arm_name(arm: str, loss: str) -> str:
    """What tables and claims call an arm: another loss than KL makes another arm.

    So no mean is over trainings of two losses, and each has its own control.
    """
    return arm if loss == KL else f"{arm}_{loss}"


#: All that tables and claims call an arm, and the control of each.
CONTROL_OF = {arm_name(arm, loss): arm_name(CONTROL, loss) for loss in LOSSES for arm in ARMS}
