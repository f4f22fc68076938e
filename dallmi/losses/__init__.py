"""Objectives over observed positives, unlabelled texts and trusted negatives; MixUp; class priors."""

from dallmi.losses.anchored import AnchoredLoss, anchored_loss
from dallmi.losses.base import Loss
from dallmi.losses.class_prior import correct_prior, estimate_prior, unlabelled_posterior
from dallmi.losses.missing_labels import ASLLoss, EMLoss, SPLCLoss, asl_loss, em_loss, splc_loss
from dallmi.losses.mixup import MixUp
from dallmi.losses.pu_risk import NNPULoss, SPULoss, nnpu_loss, spu_loss
from dallmi.losses.supervised import BCELoss, bce_loss
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
