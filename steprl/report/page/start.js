// Puts the page together. What is filtered and open stands in the address, behind the #.

addEventListener("error", (event) => {
  document.documentElement.dataset.error = event.message;
});

const data = parsed("data");
const details = new Map();
const KEPT = 64; // trajectories that stay parsed

function detailOf(place) {
  if (!details.has(place)) {
    if (details.size >= KEPT) details.delete(details.keys().next().value);
    details.set(place, parsed(`t${place}`));
  }
  return details.get(place);
}

function drawHead() {
  const { head, curves, entries, evaluations } = data;
  byId("name").textContent = spelt(head.name);
  byId("about").textContent = spelt([
    head.method && head.env ? `${head.method} on ${head.env}` : "",
    head.model === null ? "" : `model ${head.model}`,
    head.seed === null ? "" : `seed ${head.seed}`,
  ].filter(Boolean).join(" · "));
  const tile = (label, value, note) => byId("tiles").append(el("div", { class: "tile" },
    el("span", { class: "label" }, label), el("b", {}, value), note && el("span", {}, note)));
  const main = evaluations.find((one) => one.name === "eval/success_rate");
  if (main) {
    tile("success, evaluated", shown(main.last[1]),
      (main.first ? `from ${shown(main.first[1])}, ` : "") + `95 % interval ${shown(main.last[2])} to ${shown(main.last[3])}`);
  }
  const last = (name) => {
    const found = (curves.columns[name] || []).filter((x) => x !== null);
    return found.length ? found[found.length - 1] : null;
  };
  const steps = curves.steps;
  if (last("rollout/success_rate") !== null) tile("success, training", shown(last("rollout/success_rate")), "last iteration");
  if (last("critic/rewards/mean") !== null) tile("return, training", shown(last("critic/rewards/mean")), "last iteration");
  if (steps.length) {
    const planned = head.planned ? `of ${shown(head.planned)} planned` : "";
    tile("iterations", shown(steps[steps.length - 1]), planned);
  }
  if (last("token/total") !== null) tile("tokens sampled", shown(last("token/total")), "");
  if (entries.length) {
    const faulty = entries.filter((entry) => entry.fault !== null).length;
    tile("trajectories here", shown(entries.length), faulty ? `${shown(faulty)} with a fault` : "none with a fault");
  }
}

function drawSettings() {
  const { changed, text } = data.settings;
  const table = byId("changed");
  if (changed.length) {
    table.append(el("tr", {}, ["not the default", "here", "default"].map((t) => el("th", {}, t))));
  }
  for (const [name, here, otherwise] of changed) {
    table.append(el("tr", {}, el("td", {}, el("code", {}, visible(name))), el("td", {}, el("code", {}, visible(here))),
      el("td", {}, otherwise === null ? "–" : el("code", {}, visible(otherwise)))));
  }
  byId("all-settings").replaceChildren(...visible(text));
}

function drawBrowser() {
  const { entries, notes } = data;
  byId("notes").append(...notes.map((note) => el("li", {}, visible(note))));
  if (!entries.length) {
    byId("browser").hidden = true;
    return;
  }
  let opened = null;
  const detail = makeDetail(entries, detailOf, open, (key) => remember({ colour: key }));
  const list = makeList(entries, detailOf, open);

  function open(place, step = null) {
    opened = place;
    detail.show(place, stateNow().get("colour"));
    list.select(place);
    remember({ open: String(place) });
    if (step !== null) detail.toStep(step);
    else if (byId("detail").getBoundingClientRect().top < 0) byId("trajectories").scrollIntoView();
  }

  function stateNow() {
    return new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  }
  function remember(changes) {
    const state = stateNow();
    for (const [name, value] of Object.entries(changes)) {
      if (value) state.set(name, value);
      else state.delete(name);
    }
    try {
      history.replaceState(null, "", `#${state}`);
    } catch {
      // Where a page may not write its address, it works all the same.
    }
  }
  function recall() {
    const state = stateNow();
    for (const name of FILTERS) {
      if (state.has(name)) list.form.elements[name].value = state.get(name);
    }
    list.filter();
    const asked = state.has("open") ? Number(state.get("open")) : NaN;
    const first = Number.isInteger(asked) && entries[asked] ? asked : list.shown()[0];
    if (first !== undefined) open(first);
  }

  let waiting = 0;
  function filtered() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      list.filter();
      remember(Object.fromEntries(FILTERS.map((name) => [name, list.form.elements[name].value])));
      const places = list.shown();
      if (places.length && !places.includes(opened)) open(places[0]);
      else if (places.length) list.select(opened);
    }, 120);
  }
  list.form.addEventListener("input", filtered);
  list.form.addEventListener("reset", () => setTimeout(filtered));
  addEventListener("hashchange", () => { if (location.hash.includes("=")) recall(); });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
    const typing = event.target.closest && event.target.closest("input:not([type=radio]), select, textarea");
    if (typing) {
      if (event.key === "Escape") byId("list").focus();
      return;
    }
    const act = { j: () => list.move(1), k: () => list.move(-1), n: () => detail.stepBy(1), p: () => detail.stepBy(-1),
      c: () => detail.nextColour(), "/": () => list.form.elements.text.focus() }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  recall();
}

const THEMES = { "": ["Auto", "as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = THEMES[next][0];
  byId("theme").setAttribute("aria-label", `Colours of the page: ${THEMES[next][1]}`);
});
byId("help").addEventListener("click", () => byId("keys").showModal());
addEventListener("keydown", (event) => {
  if (event.key === "?" && !event.target.closest("input, select")) byId("keys").showModal();
});

// Links within the page leave the address alone, which holds the filters.
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const section = byId(link.getAttribute("href").slice(1));
    section.scrollIntoView();
    section.tabIndex = -1;
    section.focus({ preventScroll: true });
  });
}

drawHead();
drawCurves(data.curves);
drawEvaluations(data.evaluations);
drawSettings();
drawBrowser();
document.documentElement.dataset.state = "ready";
document.documentElement.dataset.milliseconds = String(Math.round(performance.now()));
