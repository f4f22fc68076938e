"""One table of named choices: a loss, MixUp, a share of balanced sampling, and a budget."""

__all__ = ["Recipe", "RECIPES", "find_recipe", "recipes_table"]

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pandas as pd
from torch import nn

from dallmi.errors import InputError, unknown_name
from dallmi.losses import (
    AnchoredLoss,
    ASLLoss,
    BCELoss,
    EMLoss,
    MixUp,
    NNPULoss,
    SPLCLoss,
    SPULoss,
    VariationLoss,
)
from dallmi.training.trainer import check_loss, loss_name

RANGES = {
    "balanced_share": (0, 1),
    "batch_size": (2, 100_000),
    "epochs": (1, 10_000),
    "learning_rate": (0, 1),
}


@dataclass(frozen=True)
class Recipe:
    """A way to adapt: the parts of the method, none of which knows of another, and a budget.

    `labels`: what of the target's labels it may see, the observed ones or all of them (the upper
    bound). Raises `InputError` for a value out of range."""

    loss: nn.Module
    mixup: MixUp | None = None
    balanced_share: float = 0.0
    batch_size: int = 16
    epochs: int = 3
    learning_rate: float = 1e-4
    labels: Literal["observed", "all"] = "observed"

    def __post_init__(self) -> None:
        check_loss(self.loss)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise InputError(f"{name}={value!r} is outside {low} … {high}.")
        if self.labels not in ("observed", "all"):
            raise InputError(f"labels={self.labels!r} is unknown: use 'observed' or 'all'.")

    def describe(self) -> dict[str, Any]:
        "The recipe as JSON-able values: all that decides its numbers."
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        loss = {"class": type(self.loss).__name__} | _parameters(self.loss)
        mixup = None if self.mixup is None else _parameters(self.mixup)
        return own | {"loss": loss, "mixup": mixup}

    def change(self, **overrides: Any) -> "Recipe":
        """A copy with some settings changed.

        Names: the recipe's own (`epochs`, `loss`, …), `mixup_` and a field of `MixUp`
        (`mixup_weight`), or a constructor parameter of the loss (`form`, `prior_weight`). Raises
        `InputError` for another name, offering the nearest, and for a value out of range."""
        recipe = replace(self, loss=copy.deepcopy(overrides.pop("loss", self.loss)))
        known = recipe.settings()
        for name in overrides:
            if name not in known:
                raise unknown_name("setting of this recipe called", name, list(known))
        own = {k: v for k, v in overrides.items() if k in recipe.__dataclass_fields__}
        mixing = {k[6:]: v for k, v in overrides.items() if k.startswith("mixup_")}
        of_loss = {k: v for k, v in overrides.items() if k not in own and k[:6] != "mixup_"}
        if mixing:
            mixup = replace(recipe.mixup or MixUp(), **mixing)
            recipe = replace(recipe, mixup=mixup if mixup.weight > 0 else None)
        if of_loss:
            parameters = _parameters(recipe.loss) | of_loss
            recipe = replace(recipe, loss=type(recipe.loss)(**parameters))
        return replace(recipe, **own)

    def settings(self) -> dict[str, Any]:
        "What `change` can change, {name: value now}: own fields, `mixup_…`, the loss's parameters."
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        mixup = {f"mixup_{k}": v for k, v in _parameters(self.mixup or MixUp()).items()}
        return own | mixup | _parameters(self.loss)

    @property
    def loss_name(self) -> str:
        "What the loss is called in logs and tables."
        return loss_name(self.loss)


def _parameters(part: Any) -> dict[str, Any]:
    "Constructor parameters of a loss or a MixUp, read from the attributes of the same names."
    names = inspect.signature(type(part).__init__).parameters
    return {name: getattr(part, name) for name in names if hasattr(part, name)}


RECIPES: dict[str, Recipe] = {
    "anchored": Recipe(AnchoredLoss(), MixUp(weight=0.5, max_pairs=4)),
    "paper": Recipe(
        VariationLoss("norm"),
        MixUp(weight=1.0, max_pairs=64),
        balanced_share=1.0,
        batch_size=64,
        epochs=12,
        learning_rate=5e-5,
    ),
    "log": Recipe(
        VariationLoss("log"),
        MixUp(weight=1.0, max_pairs=8, form="log"),
        balanced_share=0.5,
        batch_size=64,
        epochs=4,
        learning_rate=5e-5,
    ),
    "partial": Recipe(BCELoss(unknown="negative")),
    "asl": Recipe(ASLLoss()),
    "em": Recipe(EMLoss()),
    "splc": Recipe(SPLCLoss()),
    "nnpu": Recipe(NNPULoss(), balanced_share=0.5),
    "spu": Recipe(SPULoss(), balanced_share=0.5),
    "supervised": Recipe(BCELoss(unknown="ignore"), labels="all"),
}


def _read_value(text: str, default: Any, name: str) -> Any:
    "The `text` of a setting as a value of the type of its `default`."
    kind = type(default)
    if kind not in (int, float, str):
        raise InputError(f"{name} cannot be given as text; change it from Python.")
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{name}={text} is not a value of the kind {kind.__name__}.") from None


def find_recipe(
    spec: "str | Recipe",
    recipes: Mapping[str, Recipe] = RECIPES,
    defaults: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Recipe:
    """The recipe that `spec` names, with changes: 'anchored',
    'anchored:mixup_weight=0,epochs=5'.

    `spec` may be a `Recipe` too. `defaults`: settings for what the text does not say (a budget,
    say). `overrides`: see `Recipe.change`; they win over the text. Raises `InputError` for an
    unknown name or setting, offering the nearest, and for a value that cannot be used."""
    if isinstance(spec, Recipe):
        return spec.change(**{**(defaults or {}), **overrides})
    name, _, rest = str(spec).partition(":")
    if name not in recipes:
        raise unknown_name("recipe", name, list(recipes))
    recipe = recipes[name].change(**(defaults or {}))
    known = recipe.settings()
    changes: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in known:
            raise unknown_name(f"setting of the recipe {name!r} called", key, list(known))
        if not text:
            raise InputError(f"In '{spec}' the setting {key} has no value; write {key}=VALUE.")
        changes[key] = _read_value(text, known[key], key)
    return recipe.change(**changes | overrides)


def recipes_table() -> str:
    "The recipes as a table in plain text: loss, MixUp, sampling and budget, a line each."
    rows = []
    for name, recipe in RECIPES.items():
        mixup = (
            "" if recipe.mixup is None else f"{recipe.mixup.weight:g} × {recipe.mixup.max_pairs}"
        )
        loss = ", ".join(f"{key}={value}" for key, value in _parameters(recipe.loss).items())
        rows.append(
            {
                "recipe": name,
                "loss": f"{type(recipe.loss).__name__}({loss})",
                "MixUp": mixup,
                "balanced": f"{100 * recipe.balanced_share:g} %",
                "batch": recipe.batch_size,
                "epochs": recipe.epochs,
                "rate": f"{recipe.learning_rate:g}",
            }
        )
    table = pd.DataFrame(rows).to_string(index=False)
    mixup = ", ".join(f"mixup_{f.name}" for f in fields(MixUp))
    return f"{table}\n\nEvery column can be changed, and: {mixup}."
