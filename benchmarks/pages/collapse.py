"""What keeps a run from collapsing."""

from pathlib import Path

from pages.cells import file, read, table

_TITLES = {
    "plain": "GRPO",
    "target_kl": "`actor.target_kl=0.02`",
    "half_lr": "half the learning rate",
    "adam_b2": "`actor.adam_b2=0.999`",
    "noise": "scores that differ by chance, up to .02",
    "noise_min_std": "such scores, `algorithm.min_std=0.1`",
}


def remedies(results: Path, link: str) -> str:
    """A row a variant: success at the end, its range, seeds that were lost, highest entropy."""
    record = read(results, "collapse")
    if record is None:
        return ""
    by_name = {row["name"]: row for row in record["rows"]}
    rows = []
    for name, title in _TITLES.items():
        success = next((by_name[n] for n in by_name if n.startswith(f"{name}: success")), None)
        if success is None:
            continue
        low, high = success["spread"]
        rows.append(
            (
                title,
                f"{success['value']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{by_name[f'{name}: seeds below .5']['value']:.0f} of {record['seeds']}",
                f"{by_name[f'{name}: highest entropy']['value']:.2f}",
            )
        )
    head = (
        "",
        "success, last 20 iterations",
        "range of seeds",
        "seeds below .5",
        "highest entropy",
    )
    return table(head, rows) + f"\n\n{file(link, 'collapse.json')}"
