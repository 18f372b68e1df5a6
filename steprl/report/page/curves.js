// Curves: one small picture a panel, read off with the pointer or the arrow keys.

const CHART = { width: 380, height: 168, left: 46, right: 10, top: 10, bottom: 22 };

/** Three or four round numbers that span the values. */
function ticks(low, high) {
  if (low === high) {
    const around = Math.abs(low) || 1;
    [low, high] = [low - around / 2, high + around / 2];
  }
  const raw = (high - low) / 3;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

/** A tick with as many digits as tell it from the next. */
function tickText(mark, step) {
  const size = Math.max(Math.abs(mark), step);
  return shown(Number(mark.toPrecision(12)), Math.max(2, Math.ceil(Math.log10(size / step) + 1e-9) + 2));
}

/** The path of the points that there are; a gap where a value is missing between two others. */
function pathOf(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function panel(curves, title, note, lines) {
  const steps = lines[0].name.startsWith("sft/") ? curves.sft_steps : curves.steps;
  const columns = curves.columns;
  const values = lines.flatMap((line) =>
    [line.name, line.low, line.high].flatMap((name) => (name ? columns[name] : [])));
  const finite = values.filter((x) => x !== null);
  const marks = ticks(finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b)));
  const [least, most] = [marks[0], marks[marks.length - 1]];
  const { width, height, left, right, top, bottom } = CHART;
  const [begin, end] = [steps[0], steps[steps.length - 1]];
  const xOf = (step) => left + ((step - begin) / (end - begin || 1)) * (width - left - right) * (end > begin)
    + (end > begin ? 0 : (width - left - right) / 2);
  const yOf = (y) => top + (1 - (y - least) / (most - least)) * (height - top - bottom);

  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img",
    "aria-label": `${title}, ${counted(steps.length, "value")}` });
  for (const mark of marks) {
    picture.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: yOf(mark), y2: yOf(mark) }),
      svg("text", { x: left - 6, y: yOf(mark) + 3.5, "text-anchor": "end" }, tickText(mark, marks[1] - marks[0])));
  }
  picture.append(
    svg("text", { x: left, y: height - 6 }, shown(begin)),
    end > begin && svg("text", { x: width - right, y: height - 6, "text-anchor": "end" }, shown(end)));
  const legend = el("div", { class: "legend" });
  const readings = lines.map((line, place) => {
    const points = steps.map((step, i) => [step, columns[line.name][i], i]).filter((p) => p[1] !== null);
    const group = svg("g", { class: `s${place % 4}` });
    if (line.low) {
      const band = points.filter((p) => columns[line.low][p[2]] !== null && columns[line.high][p[2]] !== null);
      const edge = (name) => band.map((p) => [xOf(p[0]), yOf(columns[name][p[2]])]);
      const outline = [...edge(line.low), ...edge(line.high).reverse()];
      group.append(svg("path", { class: "band", d: pathOf(outline) + "Z" }));
    }
    const places = points.map((p) => [xOf(p[0]), yOf(p[1])]);
    group.append(svg("path", { class: "line", d: pathOf(places) }));
    if (points.length <= 25) {
      for (const [x, y] of places) group.append(svg("circle", { class: "dot", cx: x, cy: y, r: 2.4 }));
    }
    picture.append(group);
    const value = el("b");
    legend.append(el("span", { class: `s${place % 4}` }, el("i", { class: "key" }), line.label + " ", value));
    return { points, value };
  });
  const cross = svg("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
  const where = svg("text", { y: height - 6, "text-anchor": "middle", visibility: "hidden" });
  picture.append(cross, where);

  let at = steps.length - 1;
  function read(index, pointed) {
    at = Math.max(0, Math.min(steps.length - 1, index));
    for (const { points, value } of readings) {
      const before = points.filter((p) => p[2] <= at);
      const point = before.length ? before[before.length - 1] : null;
      value.textContent = shown(point && point[1]);
    }
    const x = xOf(steps[at]);
    for (const part of [cross, where]) part.setAttribute("visibility", pointed ? "visible" : "hidden");
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    where.setAttribute("x", Math.max(left + 40, Math.min(width - right - 45, x)));
    where.textContent = shown(steps[at]);
  }
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    let nearest = 0;
    steps.forEach((step, i) => {
      if (Math.abs(xOf(step) - x) < Math.abs(xOf(steps[nearest]) - x)) nearest = i;
    });
    read(nearest, true);
  });
  const leave = () => read(steps.length - 1, false);
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
    if (!move) return;
    event.preventDefault();
    read(at + move, true);
  });
  leave();
  return el("div", { class: "panel" },
    el("h3", {}, title, note && el("small", {}, note)), legend, picture);
}

function drawCurves(curves) {
  const target = byId("panels");
  for (const { title, note, lines } of curves.panels) target.append(panel(curves, title, note, lines));
  if (!curves.panels.length) target.append(el("p", { class: "note" }, "This run has no metrics yet."));
  const others = byId("other-curves");
  others.hidden = curves.others.length === 0;
  others.querySelector("summary").textContent = `All other metrics (${curves.others.length})`;
  others.addEventListener("toggle", () => {
    const more = byId("other-panels");
    if (!others.open || more.children.length) return;
    for (const name of curves.others) more.append(panel(curves, name, "", [{ name, label: "" }]));
  });
}

/** Means with their intervals, at the first and the last evaluation. */
function drawEvaluations(evaluations) {
  if (!evaluations.length) return;
  byId("evaluation").hidden = false;
  const table = byId("evaluations");
  table.append(el("tr", {}, ["metric", "before", "after", "95 % intervals"].map((t) => el("th", {}, t))));
  const cell = (point) => point === null ? el("td", { class: "n" }, "–")
    : el("td", { class: "n" }, el("b", {}, shown(point[1])), " ",
      el("small", {}, `[${shown(point[2])}, ${shown(point[3])}] at ${point[0]}`));
  for (const { label, first, last } of evaluations) {
    const ends = [first, last].filter(Boolean).flatMap((p) => p.slice(1)).filter((x) => x !== null);
    const low = Math.min(0, ...ends);
    const high = Math.max(1, ...ends);
    const xOf = (x) => 4 + ((x - low) / (high - low)) * 232;
    const picture = svg("svg", { class: "interval", viewBox: "0 0 240 28", "aria-hidden": "true" },
      svg("line", { x1: 4, x2: 236, y1: 14, y2: 14, stroke: "var(--line)" }));
    [[first, 9, "var(--faint)"], [last, 19, "var(--s0)"]].forEach(([point, y, stroke]) => {
      if (!point || point[2] === null || point[3] === null) return;
      picture.append(
        svg("line", { x1: xOf(point[2]), x2: xOf(point[3]), y1: y, y2: y, stroke, "stroke-width": 3, "stroke-linecap": "round" }),
        svg("circle", { cx: xOf(point[1]), cy: y, r: 4, fill: stroke }));
    });
    table.append(el("tr", {}, el("td", {}, label), cell(first), cell(last), el("td", {}, picture)));
  }
}
