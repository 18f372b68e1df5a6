"""What is compared: the critic of StepPO, one line a variant, in games of the laboratory."""

from typing import NamedTuple

from laboratory import design

from steprl.config import Config

LR, CLIP = (
    1e-3,
    0.1,
)  # learning rate and share of clipped tokens of StepPO in the laboratory's table
# GRPO is the line to beat, at the share of clipped tokens that its own tuning chose.
GRPO, GRPO_CLIP = "grpo", 0.02
SHIPPED = "shipped"


class Variant(NamedTuple):
    """Settings of the critic, as overrides of the laboratory's StepPO."""

    title: str
    overrides: tuple[str, ...] = ()
    long: bool = False  # also in the longest game, where runs take most of the time


_SEPARATE = "model.value_head=separate"

VARIANTS: dict[str, Variant] = {
    SHIPPED: Variant("as shipped", long=True),
    "lr_x3": Variant("critic's rate x 3", ("critic.lr=3e-3",)),
    "lr_x10": Variant("critic's rate x 10", ("critic.lr=1e-2",), long=True),
    "separate": Variant("separate", (_SEPARATE,)),
    "separate_lr_x3": Variant("separate, rate x 3", (_SEPARATE, "critic.lr=3e-3"), long=True),
    GRPO: Variant("GRPO, no critic", long=True),
}

CELLS = ("errand-16", "shop-8", "errand-32")
LONGEST = "errand-32"
OPTIONAL = ("multihop-7", design.TUNED_ON)
SEEDS = 8

# The yardstick: episodes of held-out tasks, states drawn from their steps, continuations from each.
ROWS, STATES, CONTINUATIONS = 64, 128, 8
MIDDLE = 20  # iterations before the first look; the second is at the end

# Numbers that are given to the compiled program: variants that differ in nothing else share it.
GIVEN = ("critic.lr", "critic.vf_coef")


class Scale(NamedTuple):
    """How much is run."""

    cells: tuple[str, ...]
    seeds: int
    variants: tuple[str, ...]


SCALES = {
    "quick": Scale((design.TUNED_ON,), 4, (SHIPPED, "lr_x10", GRPO)),
    "standard": Scale(CELLS, SEEDS, tuple(VARIANTS)),
}


def method_of(variant: str) -> str:
    """Its name in the laboratory's table of methods."""
    return GRPO if variant == GRPO else "steppo"


def config_of(cell: str, variant: str) -> Config:
    """The configuration of a run."""
    base = (f"actor.lr={LR}", "model.value_head=shared")
    return design.config_of(cell, method_of(variant), (*base, *VARIANTS[variant].overrides))


def program_of(variant: str) -> tuple[str, ...]:
    """What a variant has to be compiled for: variants of the same share one program."""
    fixed = [x for x in VARIANTS[variant].overrides if x.partition("=")[0] not in GIVEN]
    return (method_of(variant), *sorted(fixed))


def settings_of(cell: str, variant: str) -> dict[str, float]:
    """The numbers that the compiled program is given."""
    config = config_of(cell, variant)
    critic = config.critic
    return {
        "actor.lr": LR,
        "critic.lr": LR if critic.lr is None else critic.lr,
        "critic.vf_coef": critic.vf_coef,
        "clip_fraction": GRPO_CLIP if variant == GRPO else CLIP,
        "token_budget": float(design.token_budget(cell)),
    }


def pairs(scale: Scale) -> list[tuple[str, str]]:
    """The cells and variants that a scale has; those of one program stand together."""
    found = [
        (cell, variant)
        for cell in scale.cells
        for variant in scale.variants
        if cell != LONGEST or VARIANTS[variant].long
    ]
    order = list(VARIANTS)
    return sorted(
        found,
        key=lambda p: (scale.cells.index(p[0]), program_of(p[1]), order.index(p[1])),
    )
