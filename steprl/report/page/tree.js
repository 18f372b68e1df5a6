// Trajectories that share a beginning: children below their parent, from where they branch off.

const LANE = { height: 26, step: 26, left: 12 };

/** The places of all trajectories that descend from the same one, parents before their children. */
function familyOf(entries, place) {
  const parentOf = (p) => {
    const parent = entries[p].parent;
    return parent && parent.id !== null && parent.at !== null && parent.at !== undefined && parent.at !== p ? parent.at : null;
  };
  let root = place;
  const seen = new Set([root]);
  for (let up = parentOf(root); up !== null && !seen.has(up); up = parentOf(root)) {
    seen.add(up);
    root = up;
  }
  const children = new Map();
  entries.forEach((_, p) => {
    const up = parentOf(p);
    if (up !== null) children.set(up, [...(children.get(up) || []), p]);
  });
  const family = [];
  const visit = (p, depth) => {
    if (family.some((one) => one.place === p)) return;
    family.push({ place: p, depth, parent: depth ? parentOf(p) : null });
    (children.get(p) || []).forEach((child) => visit(child, depth + 1));
  };
  visit(root, 0);
  return family;
}

/** What is written beside a trajectory of a family. */
function aboutLane(entry, isBranch) {
  const parent = entry.parent || {};
  const said = [`attempt ${entry.sample}`, entry.success ? "✓" : "✗", `return ${shown(entry.return)}`];
  if (isBranch) {
    const from = `from step ${(parent.step || 0) + 1}`;
    said.push(parent.token ? `${from}, after ${counted(parent.token, "token")}` : from);
  }
  if (parent.score) said.push(`score ${shown(parent.score)}`);
  if (parent.preference) said.push(parent.preference > 0 ? "preferred" : "not preferred");
  return said.join(" · ");
}

function drawTree(entries, detailOf, place, open) {
  const family = familyOf(entries, place);
  if (family.length < 2) {
    const parent = entries[place].parent;
    return parent && parent.id !== null
      ? el("p", { class: "note" }, `Branched off from ${parent.id} at step ${parent.step + 1}, which this page does not hold.`)
      : null;
  }
  const lanes = new Map(family.map((one, i) => [one.place, i]));
  const most = Math.max(1, ...family.map((one) => entries[one.place].steps));
  const xOf = (step) => LANE.left + (step + 0.5) * LANE.step;
  const yOf = (p) => (lanes.get(p) + 0.5) * LANE.height;
  const words = LANE.left + most * LANE.step + 18;
  const largest = Math.max(1e-9, ...family.flatMap((one) => detailOf(one.place).steps.map((s) => Math.abs(s.advantage || 0))));
  const said = new Map(family.map((one) => [one.place, aboutLane(entries[one.place], one.parent !== null)]));
  const width = words + 12 + 7.2 * Math.max(...[...said.values()].map((text) => text.length));
  const picture = svg("svg", { width, height: family.length * LANE.height, role: "group", "aria-label": "Branches" });
  for (const one of family) {
    const entry = entries[one.place];
    const begin = one.parent === null ? 0 : Math.min(entry.parent.step || 0, Math.max(0, entry.steps - 1));
    const y = yOf(one.place);
    if (one.parent !== null) {
      const from = xOf(begin) - LANE.step / 2;
      picture.append(svg("path", { d: `M${from - 4} ${yOf(one.parent)}V${y - 6}Q${from - 4} ${y} ${from + 2} ${y}H${xOf(begin)}` }));
    }
    const go = (event) => {
      event.preventDefault();
      open(one.place, Number(event.target.dataset.step) || 0);
    };
    const lane = svg("g", { class: one.place === place ? "lane current" : "lane", tabindex: 0, role: "button",
      "aria-label": said.get(one.place), "aria-current": one.place === place ? "true" : null, onclick: go,
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") go(event); } },
    svg("rect", { x: 1, y: y - LANE.height / 2 + 1, width: width - 2, height: LANE.height - 2, rx: 6 }),
    svg("line", { x1: xOf(begin), x2: xOf(Math.max(begin, entry.steps - 1)), y1: y, y2: y }));
    detailOf(one.place).steps.forEach((step, number) => {
      if (number < begin) return;
      const circle = svg("circle", { cx: xOf(number), cy: y, r: 6.5, "data-step": number },
        svg("title", {}, `step ${number + 1}: advantage ${shown(step.advantage, 3, true)}`));
      circle.style.fill = step.masked ? "var(--sunk)" : diverging(step.advantage, largest, "var(--card)");
      lane.append(circle);
    });
    lane.append(svg("text", { x: words, y: y + 4 }, said.get(one.place)));
    picture.append(lane);
  }
  return el("div", { class: "tree" }, picture);
}
