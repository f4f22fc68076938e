"""Move a multi-label text classifier to a new domain with a few positive labels.

    from dallmi import adapt

    result = adapt("reviews.csv", "tickets.csv", label_fraction=0.1)
    result.metrics["anchored"]["mAP"]
    result.predict(["My parcel never came."])

Names are loaded when they are first used (PEP 562): `import dallmi` needs no torch."""

__version__ = "0.2.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "Adaptation": "dallmi.adaptation",
    "Classifier": "dallmi.inference",
    "DallmiArguments": "dallmi.training.trainer",
    "DallmiClassifier": "dallmi.estimator",
    "DallmiTrainer": "dallmi.training.trainer",
    "Domain": "dallmi.data.domain",
    "InputError": "dallmi.errors",
    "MixUp": "dallmi.losses.mixup",
    "Recipe": "dallmi.recipes",
    "adapt": "dallmi.adaptation",
    "load_domain": "dallmi.data.labels",
    "mask_labels": "dallmi.data.masking",
}
_MODULES = ("losses", "recipes")

__all__ = ["__version__", *sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"dallmi.{name}")
    raise AttributeError(f"module 'dallmi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from dallmi import losses as losses
    from dallmi import recipes as recipes
    from dallmi.adaptation import Adaptation, adapt
    from dallmi.data.domain import Domain
    from dallmi.data.masking import mask_labels
    from dallmi.data.labels import load_domain
    from dallmi.errors import InputError
    from dallmi.estimator import DallmiClassifier
    from dallmi.inference import Classifier
    from dallmi.losses.mixup import MixUp
    from dallmi.recipes import Recipe
    from dallmi.training.trainer import DallmiArguments, DallmiTrainer
