"""Signal and noise of step credit over trajectory credit, by the share of steps that matter."""

from pathlib import Path

from pages.cells import file, interval, read, table

_NAMES = {"critic": "StepPO, learnt critic", "true": "true advantages of steps"}


def in_short(results: Path, link: str) -> str:
    """A row a cell, and the fitted exponents."""
    record = read(results, "density")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    areas = any(name.endswith("grpo: area") for name in rows)
    lines = []
    for cell in record["cells"]:
        if f"{cell}: success" not in rows:
            continue
        line = [cell] + [
            format(rows[f"{cell}: {name}"]["value"], ".2f")
            for name in ("success", "explained variance")
        ]
        for name in _NAMES:
            row = rows[f"{cell}: {name} over trajectory"]
            line.append(interval(row, ".2f") if row["spread"] else "no signal found")
        if areas:
            line += [interval(rows.get(f"{cell}: {m}: area")) for m in ("steppo", "grpo")]
        lines.append(line)
    head = ["game", "success of the policy", "explained variance of the critic", *_NAMES.values()]
    if areas:
        head += ["area of StepPO", "area of GRPO"]
    fitted = [
        (name, *(interval(rows.get(f"exponent, {key}, {where}"), "+.2f") for where in _WHERE))
        for key, name in _NAMES.items()
    ]
    text = (
        table(head, lines)
        + "\n\nRatios are of amplitudes, the square root of signal over noise, over that of GRPO's credit, "
        f"with 95 % intervals by the bootstrap over {record['groups']} groups of {record['attempts']} "
        "attempts. "
    )
    if areas:
        text += f"Areas are means of {record['seeds']} seeds, with the least and the largest. "
    return (
        text
        + f"The power of the density that fits them; {record['claim']:g} is claimed:\n\n"
        + table(("credit", *_WHERE), fitted)
        + f"\n\n{record['minutes']:.0f} minutes on {record['hardware']}: {file(link, 'density.json')}.\n\n"
        f"![Ratios by density]({link}/density.png)"
    )


_WHERE = ("16 steps", "32 steps", "both horizons")
