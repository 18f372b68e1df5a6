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
PLAIN = "plain"  # what the others are compared with


class Variant(NamedTuple):
    """Settings of the critic, as overrides of the laboratory's StepPO."""

    title: str
    overrides: tuple[str, ...] = ()
    long: bool = False  # also in the longest game, where runs take most of the time


# Of the plain critic, whatever the defaults are: a shared trunk, one rate, one norm that is clipped.
_PLAIN = (
    "model.value_head=shared", "critic.lr=1e-3", "critic.grad_clip=null", "critic.init=model",
    "critic.detach_trunk=false", "critic.ppo_epochs=null", "critic.ppo_mini_batch_size=null",
    "critic.norm_returns=false", "critic.head=scalar", "critic.privileged=false",
    "trainer.critic_warmup=0",
)  # fmt: skip
_X3, _X10 = "critic.lr=3e-3", "critic.lr=1e-2"
_APART = "critic.grad_clip=1.0"
_SEPARATE = "model.value_head=separate"
_OWN = (_SEPARATE, _X3, _APART)  # from here on, one more thing is changed at a time

VARIANTS: dict[str, Variant] = {
    PLAIN: Variant("shared trunk, one rate, one clip", long=True),
    "lr_x3": Variant("critic's rate x 3", (_X3,)),
    "lr_x10": Variant("critic's rate x 10", (_X10,)),
    "lr_x10_apart": Variant("critic's rate x 10, clipped apart", (_X10, _APART)),
    "separate": Variant("separate", (_SEPARATE,)),
    "separate_lr_x3": Variant("separate, rate x 3", (_SEPARATE, _X3)),
    "own": Variant("separate, rate x 3, clipped apart", _OWN, long=True),
    "copied": Variant(
        "... begins as a copy of the policy", (*_OWN, "critic.init=policy"), long=True
    ),
    "copied_lr_x1": Variant(
        "... begins as a copy of the policy, rate x 1", (_SEPARATE, _APART, "critic.init=policy")
    ),
    "warmup": Variant("... 4 iterations alone at first", (*_OWN, "trainer.critic_warmup=4")),
    "epochs": Variant("... 4 epochs of its own", (*_OWN, "critic.ppo_epochs=4")),
    "normalised": Variant("... normalised returns", (*_OWN, "critic.norm_returns=true")),
    "hl_gauss": Variant(
        "... HL-Gauss",
        (*_OWN, "critic.head=hl_gauss", "critic.value_min=0.0", "critic.value_max=1.0"),
    ),
    "privileged": Variant("... privileged", (*_OWN, "critic.privileged=true"), long=True),
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
    "quick": Scale((design.TUNED_ON,), 4, (PLAIN, "own", GRPO)),
    "standard": Scale(CELLS, SEEDS, tuple(VARIANTS)),
}


def method_of(variant: str) -> str:
    """Its name in the laboratory's table of methods."""
    return GRPO if variant == GRPO else "steppo"


def config_of(cell: str, variant: str) -> Config:
    """The configuration of a run."""
    more = (f"actor.lr={LR}", *_PLAIN, *VARIANTS[variant].overrides)
    return design.config_of(cell, method_of(variant), more)


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
    programs = [program_of(variant) for variant in order]

    def place(pair: tuple[str, str]) -> tuple[int, int, int]:
        cell, variant = pair
        first = programs.index(program_of(variant))
        return scale.cells.index(cell), first, order.index(variant)

    return sorted(found, key=place)
