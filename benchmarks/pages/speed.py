"""How exact and how fast the parts are: bias, parity, functions, generation, and updates."""

from pathlib import Path

from pages.cells import file, read, table


def bias(results: Path, link: str) -> str:
    """How far the expected gradient of each estimator is from the exact one."""
    record = read(results, "bias")
    if record is None:
        return ""
    claims = [row["value"] for row in record["rows"] if row["goal"]]
    rest = [row["value"] for row in record["rows"] if not row["goal"]]
    return (
        f"In a world whose trajectories can all be listed, the {len(claims)} estimators that claim to be "
        f"unbiased have the exact gradient in expectation (largest relative error {max(claims):.0e}); "
        f"the direction of the {len(rest)} others has a relative error of {min(rest):.2f} to "
        f"{max(rest):.2f}: "
        f"{file(link, 'bias.json')}."
    )


def parity(results: Path, link: str) -> str:
    """The largest difference of logits among those that have the goal of float32."""
    record = read(results, "parity")
    if record is None:
        return ""
    checked = [
        row["value"]
        for row in record["rows"]
        if row["unit"] == "largest difference of logits" and row["goal"]
    ]
    return (
        f"Logits agree with those of transformers within {max(checked):.1e} in float32, in "
        f"{len(checked)} comparisons (GGUF and safetensors in and out, padding, KV cache, all families): "
        f"{file(link, 'parity.json')}."
    )


def advantages(results: Path, link: str) -> str:
    """The ratios to PyTorch in the manner of the references, as measured, at the large shape."""
    record = read(results, "ops")
    if record is None:
        return ""
    ways = ("from strings", "ids given", "from strings, memory reused", "ids given, memory reused")
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        name, _, rest = row["name"].partition(", 512 x 32 x 512, ")
        if row["peer_value"] is not None and rest in ways:
            cell = f"{row['value']:.0f} ms, {row['ratio']:.1f} x"
            cells.setdefault(name, {"peer": f"{row['peer_value']:.0f} ms"})[rest] = cell
    rows = [
        (name, found["peer"], *(found.get(way, "") for way in ways))
        for name, found in cells.items()
    ]
    return (
        table(("512 trajectories x 32 steps x 512 tokens", "PyTorch", *ways), rows)
        + f"\n\nMedians of one run on {record['hardware']}: {file(link, 'ops.json')}. *From strings*: names "
        "of trajectories, groups and observations become numbers on the host within the time. *Memory "
        "reused*: the results are written over the inputs; otherwise allocating two new arrays of 33 MB "
        "takes most of the time of step GAE, GRPO and GiGPO."
    )


def generation(results: Path, link: str) -> str:
    """Tokens a second, prompt included, beside transformers and tunix."""
    record = read(results, "generate")
    if record is None:
        return ""
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        case, _, peer = row["name"].partition(": end to end, against ")
        if peer:
            cells.setdefault(case, {"": f"{row['value']:.0f}"})[peer] = f"{row['ratio']:.2f} x"
    rows = [
        (case, found[""], *(found.get(peer, "") for peer in ("transformers", "tunix")))
        for case, found in cells.items()
    ]
    head = ("64 + 64 tokens, float32", "tokens/s", "of transformers", "of tunix")
    return (
        table(head, rows)
        + f"\n\nMedians, contenders in turn, on {record['hardware']}; all goals, met and missed, are in "
        f"{file(link, 'generate.json')}. {record['notes']}"
    )


def training(results: Path, link: str) -> str:
    """Tokens a second of an optimiser step, beside PyTorch and tunix."""
    record = read(results, "train_step")
    if record is None:
        return ""
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        case, _, name = row["name"].rpartition(", ")
        if row["unit"] == "tokens/s" and name == "steprl":
            cells.setdefault(case, {})["steprl"] = f"{row['value']:.0f}"
        elif name.startswith("steprl over "):
            peer = name.removeprefix("steprl over ")
            cells.setdefault(case, {})[peer] = f"{row['ratio']:.2f} x"
    names = ("steprl", "PyTorch", "tunix")
    rows = [(case, *(found.get(name, "") for name in names)) for case, found in cells.items()]
    head = ("method, model, rows x (prompt + response)", "tokens/s", "of PyTorch", "of tunix")
    return (
        table(head, rows)
        + f"\n\nMedians, contenders in turn, on {record['hardware']}: {file(link, 'train_step.json')}. "
        f"{record['notes']}"
    )
