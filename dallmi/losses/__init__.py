"""Objectives over observed positives, unlabelled texts and trusted negatives; MixUp; class priors."""

from dallmi.losses.anchored import (
    AnchoredLoss,
    anchored_loss,
    correct_prior,
    estimate_prior,
    unlabelled_posterior,
)
from dallmi.losses.base import BCELoss, Loss, bce_loss
from dallmi.losses.mixup import MixUp
from dallmi.losses.rivals import (
    ASLLoss,
    EMLoss,
    NNPULoss,
    SPLCLoss,
    SPULoss,
    asl_loss,
    em_loss,
    nnpu_loss,
    splc_loss,
    spu_loss,
)
from dallmi.losses.variation import VariationLoss, variation_loss

__all__ = [
    "ASLLoss",
    "AnchoredLoss",
    "BCELoss",
    "EMLoss",
    "Loss",
    "MixUp",
    "NNPULoss",
    "SPLCLoss",
    "SPULoss",
    "VariationLoss",
    "anchored_loss",
    "asl_loss",
    "bce_loss",
    "correct_prior",
    "em_loss",
    "estimate_prior",
    "nnpu_loss",
    "splc_loss",
    "spu_loss",
    "unlabelled_posterior",
    "variation_loss",
]
