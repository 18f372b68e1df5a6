"""LoRA adapters as the files of PEFT, in and out.

    save_adapter("adapter", params, alpha=32, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    adapter = load_adapter("adapter", config)
    params = base | {"lora": adapter.lora}
    plain = merge_lora(params, adapter.alpha / adapter.rank)

The directory that is written loads with `PeftModel.from_pretrained(base, directory)`, and vLLM and
SGLang serve it beside its base.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from steprl.models.config_file import positive_integer, positive_number
from steprl.models.files import open_file, read_json, write_file
from steprl.models.lora import init_lora, lora_targets
from steprl.models.policy import make_policy
from steprl.models.presets import DecoderConfig
from steprl.models.pretrained import on_host
from steprl.models.weights import Name, leaves_by_path, place_tree, transformers_name
from steprl.types import Params

_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = {"lora_a": "lora_A", "lora_b": "lora_B"}
# Settings that change nothing once an adapter is trained, or that are read here. Whatever else is
# set, now or in a later PEFT, would compute something else than W + scale * A @ B.
_UNDERSTOOD = {
    "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_BASE_UNCHANGED = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` with which the base is the one that it is named after."""


class Adapter(NamedTuple):
    """What a directory of PEFT holds; its scale is alpha / rank."""

    lora: Params  # to stand under "lora" beside the other parameters
    rank: int
    alpha: float


def peft_name(path: str) -> Name:
    """The name of an adapter's tensor in PEFT's file, where it lies transposed.

    Args:
        path: such as "lora/decoder/layers/0/attention/query/lora_a".

    Returns:
        The name, and True.

    Example:
        >>> peft_name("lora/decoder/layers/0/mlp/up/lora_b").name
        'base_model.model.model.layers.0.mlp.up_proj.lora_B.weight'
    """
    module, factor = path.removeprefix("lora/").rsplit("/", 1)
    return Name(f"base_model.model.{_module(module)}.{_FACTOR[factor]}.weight", True)


def save_adapter(
    directory: str | os.PathLike[str],
    params: Params,
    alpha: float,
    *,
    base_model: str | None = None,
) -> None:
    """Writes the adapters of a policy as PEFT does, in float32 and without the base.

    With several processes all must call it; the first writes.

    Args:
        directory: to be made; an empty one may be there.
        params: with a part "lora".
        alpha: that the policy was made with.
        base_model: hub id or path of the model that they belong to, noted for other programs.

    Raises:
        FileExistsError: the directory has something in it.
        ValueError: there are no adapters, their ranks differ, or numbers are not finite.
    """
    directory = Path(directory)
    if "lora" not in params:
        raise ValueError('params have no part "lora"; for the model itself use save_pretrained')
    leaves = leaves_by_path(params["lora"], "lora/")
    ranks = {leaf.shape[1] for path, leaf in leaves.items() if path.endswith("lora_a")}
    if len(ranks) != 1:
        raise ValueError(f'params["lora"]: adapters of ranks {sorted(ranks)}; one is expected')
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; name a new directory to write to")
    arrays = {
        peft_name(p).name: np.ascontiguousarray(on_host(x, None).T) for p, x in leaves.items()
    }
    broken = sorted(name for name, array in arrays.items() if not np.all(np.isfinite(array)))
    if broken:
        raise ValueError(
            f"params: {broken[0]} holds NaN or infinite numbers; export an earlier step"
        )
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": ranks.pop(),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _target_modules(params, [path.rsplit("/", 1)[0] for path in leaves]),
    }
    if jax.process_index() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / _WEIGHTS, arrays)
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (directory / _SETTINGS).write_text(text, encoding="utf-8")


def load_adapter(
    directory: str | os.PathLike[str], config: DecoderConfig, *, mesh: Mesh | None = None
) -> Adapter:
    """Reads a LoRA adapter that PEFT, or `save_adapter`, has written.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.
        config: of the decoder that it belongs to.
        mesh: places by the rules of `steprl.sharding`; None for the default device.

    Returns:
        The adapters in float32. Where PEFT scales by alpha / sqrt(r) (rsLoRA), alpha is multiplied
        so that alpha / rank is the same number.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: another kind of adapter, a damaged file, or tensors that the decoder lacks, that
            have another shape or are not finite; the message names them.
    """
    directory = Path(directory)
    for name in (_SETTINGS, _WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name} does not exist; is this the directory of an adapter?"
            )
    file = directory / _SETTINGS
    settings = read_json(file)
    _check_settings(settings, file)
    rank = positive_integer(settings.get("r"), f"{file}: r")
    alpha = positive_number(settings.get("lora_alpha"), f"{file}: lora_alpha")
    weights = open_file(directory / _WEIGHTS)
    base = jax.eval_shape(make_policy(config).init, jax.random.key(0))
    paths = {
        path
        for path in lora_targets(base)
        if peft_name(f"{path.removesuffix('/kernel')}/lora_a").name in weights
    }
    if not paths:
        raise ValueError(
            f"{directory / _WEIGHTS} has no adapter of this decoder, which has layers 0 to "
            f"{config.num_layers - 1}; it holds {', '.join(sorted(weights)[:4])}, ..."
        )
    target = "|".join(f"^{path}$" for path in sorted(paths))
    abstract = jax.eval_shape(lambda: init_lora(jax.random.key(0), base, rank, target))
    where = str(directory / _WEIGHTS)
    lora = place_tree(abstract, weights, peft_name, mesh=mesh, prefix="lora/", where=where)
    return Adapter(lora, rank, alpha * rank**0.5 if settings.get("use_rslora") else alpha)


def _module(path: str) -> str:
    """The module in `transformers` of "decoder/layers/0/mlp/up"."""
    return transformers_name(f"{path}/kernel").name.removesuffix(".weight")


def _target_modules(params: Params, adapted: list[str]) -> list[str]:
    """Short names where every layer is adapted alike, else full ones; both mean the same to PEFT."""
    full = {_module(path.removeprefix("lora/")) for path in adapted}
    short = {name.rsplit(".", 1)[1] for name in full}
    candidates = {_module(path.removesuffix("/kernel")) for path in lora_targets(params)}
    candidates = {name for name in candidates if name.rsplit(".", 1)[1] in short}
    return sorted(short if candidates == full else full)


def _check_settings(settings: dict[str, Any], file: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type={settings.get('peft_type')!r}; only LORA is supported")
    unsupported = {name: v for name, v in settings.items() if v and name not in _UNDERSTOOD}
    if settings.get("bias", "none") != "none":
        unsupported["bias"] = settings["bias"]
    if settings.get("init_lora_weights") not in _BASE_UNCHANGED:
        unsupported["init_lora_weights"] = settings["init_lora_weights"]
    if unsupported:
        text = ", ".join(f"{name}={value!r}" for name, value in sorted(unsupported.items()))
        raise ValueError(f"{file}: {text}: not supported; merge the adapter with PEFT instead")
