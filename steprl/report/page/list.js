// The list of trajectories: filtered, sorted, and drawn only where it is seen.

const ROW_HEIGHT = 58;
const FILTERS = ["text", "iteration", "success", "stop", "fault", "least", "most", "order"];
const ORDERS = {
  best: (a, b) => (b.return ?? -Infinity) - (a.return ?? -Infinity),
  worst: (a, b) => (a.return ?? Infinity) - (b.return ?? Infinity),
  long: (a, b) => b.steps - a.steps,
  new: (a, b) => (b.iteration ?? -1) - (a.iteration ?? -1),
};
const STOPS = {
  terminated: "the environment", stop_token: "a limit of steps", length: "a limit of steps (cut reply)",
  context_full: "a full context", env_timeout: "a time-out", env_crash: "a crash",
};
const stopName = (stop) => STOPS[stop] || stop;

function makeList(entries, detailOf, open) {
  const list = byId("list");
  const rows = byId("rows");
  const form = byId("filters");
  let places = [];
  let current = null;
  const texts = new Map();

  /** What the search looks through, made when it is first needed. */
  function textOf(place) {
    if (!texts.has(place)) {
      const parts = detailOf(place).steps.flatMap((s) => [s.read || "", s.said || "", s.fault || ""]);
      texts.set(place, [...parts, entries[place].fault || ""].join("\n").toLowerCase());
    }
    return texts.get(place);
  }

  function choices(name, key, label) {
    const counts = new Map();
    for (const entry of entries) counts.set(entry[key], (counts.get(entry[key]) || 0) + 1);
    const values = [...counts.keys()].sort((a, b) => (a > b ? 1 : -1));
    form.elements[name].append(el("option", { value: "" }, "all"),
      ...values.map((v) => el("option", { value: String(v) }, `${label(v)} (${counts.get(v)})`)));
  }
  choices("iteration", "iteration", (v) => v === null ? "unknown" : String(v));
  choices("stop", "stop", stopName);

  function filter() {
    const wanted = Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value]));
    const text = wanted.text.trim().toLowerCase();
    const bound = (name, otherwise) => {
      const value = parseFloat(wanted[name]);
      return Number.isNaN(value) ? otherwise : value;
    };
    const least = bound("least", -Infinity);
    const most = bound("most", Infinity);
    const ranged = least > -Infinity || most < Infinity;
    places = entries.map((_, place) => place).filter((place) => {
      const entry = entries[place];
      return (!wanted.iteration || String(entry.iteration) === wanted.iteration)
        && (!wanted.success || entry.success === (wanted.success === "yes"))
        && (!wanted.stop || entry.stop === wanted.stop)
        && (!wanted.fault || (entry.fault !== null) === (wanted.fault === "yes"))
        && (!ranged || (entry.return !== null && entry.return >= least && entry.return <= most))
        && (!text || textOf(place).includes(text));
    });
    if (ORDERS[wanted.order]) places.sort((a, b) => ORDERS[wanted.order](entries[a], entries[b]) || a - b);
    byId("count").textContent = places.length === entries.length
      ? counted(entries.length, "trajectory", "trajectories")
      : `${places.length.toLocaleString("en")} of ${counted(entries.length, "trajectory", "trajectories")}`;
    rows.style.height = `${places.length * ROW_HEIGHT}px`;
    list.scrollTop = 0;
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(places.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 5);
    rows.replaceChildren();
    if (!places.length) {
      rows.append(el("p", { class: "empty" }, entries.length ? "None of them is like that." : ""));
    }
    for (let i = first; i < last; i += 1) rows.append(row(places[i], i));
    const there = places.indexOf(current);
    if (there >= first && there < last) list.setAttribute("aria-activedescendant", `row${current}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(place, i) {
    const entry = entries[place];
    const mark = entry.fault !== null ? ["warn", "!", "fault"] : entry.success ? ["good", "✓", "solved"]
      : ["bad", "✗", "not solved"];
    const branch = entry.parent && entry.parent.id !== null ? "↳ " : "";
    const item = el("div", { class: "row", role: "option", id: `row${place}`, "aria-selected": String(place === current),
      "aria-posinset": i + 1, "aria-setsize": places.length, onclick: () => open(place) },
    el("div", { class: "first" },
      el("span", { class: `mark ${mark[0]}`, title: mark[2], role: "img", "aria-label": mark[2] }, mark[1]),
      el("b", {}, `${branch}task ${entry.task} · attempt ${entry.sample}`),
      el("span", { class: "n" }, shown(entry.return, 3, true))),
    el("div", { class: "second" },
      `${entry.iteration === null ? "" : `iteration ${entry.iteration} · `}${counted(entry.steps, "step")} · `,
      visible(entry.fault !== null ? entry.fault.slice(0, 160) : entry.said)));
    item.style.top = `${i * ROW_HEIGHT}px`;
    return item;
  }

  /** Marks a trajectory as the open one, and brings it into view. */
  function select(place) {
    current = place;
    const i = places.indexOf(place);
    if (i >= 0) {
      const top = i * ROW_HEIGHT;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) {
        list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
      }
    }
    draw();
  }

  function move(by) {
    const i = places.indexOf(current);
    const next = i < 0 ? 0 : Math.max(0, Math.min(places.length - 1, i + by));
    if (places.length) open(places[next]);
  }

  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }[event.key];
    if (by) {
      event.preventDefault();
      move(by);
    } else if (event.key === "Enter") byId("detail").focus();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  return { filter, select, move, shown: () => places, form };
}
