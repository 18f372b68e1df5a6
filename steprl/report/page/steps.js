// One trajectory: its facts, its relatives, and each step with its tokens and numbers.

// Of token i of a step; null where it is not known, as in files that have no texts of tokens.
const at = (column) => (s, i) => (s.tokens && s[column] ? s[column][i] : null);
const COLOURS = [
  { key: "advantage", label: "advantage", kind: "diverging",
    of: (s, i) => (s.advantages ? s.advantages[i] : s.advantage) },
  { key: "gap", label: "log-prob, training − rollout", kind: "diverging", of: at("gap") },
  { key: "reference", label: "log-prob, training − reference", kind: "diverging", of: at("reference_gap") },
  { key: "entropy", label: "entropy", kind: "rising", of: at("entropy") },
  { key: "surprise", label: "surprise (−log-prob)", kind: "rising",
    of: (s, i) => { const x = at("logprob")(s, i); return x === null ? null : -x; } },
];
const known = (x) => x !== null && x !== undefined && !Number.isNaN(x);

function diverging(x, largest, nothing) {
  if (!known(x) || !largest || !x) return nothing;
  const strength = Math.min(1, Math.abs(x) / largest);
  return `rgb(var(${x > 0 ? "--plus" : "--minus"}) / ${(0.6 * strength ** 0.8).toFixed(3)})`;
}
function rising(x, largest) {
  if (!known(x) || !largest || x <= 0) return "transparent";
  return `rgb(var(--heat) / ${(0.65 * Math.min(1, x / largest)).toFixed(3)})`;
}

/** The largest size of a quantity over the tokens of a trajectory; null where it is not known. */
function largestOf(colour, detail) {
  let largest = null;
  for (const step of detail.steps) {
    const size = step.tokens ? step.tokens.length : 1;
    for (let i = 0; i < size; i += 1) {
      const x = colour.of(step, i);
      if (known(x)) largest = Math.max(largest || 0, Math.abs(x));
    }
  }
  return largest;
}

function makeDetail(entries, detailOf, open, coloured) {
  const target = byId("detail");
  let detail = null;
  let chosen = COLOURS[0].key;

  function show(place, colour) {
    const entry = entries[place];
    detail = detailOf(place);
    if (COLOURS.some((one) => one.key === colour)) chosen = colour;
    target.replaceChildren(head(place, entry), colours(),
      ...detail.steps.map((step, number) => drawStep(step, number, entry)));
    if (!detail.steps.length) {
      target.append(el("p", { class: "empty" }, "It has no step: its environment failed to begin."));
    }
    paint();
  }

  function head(place, entry) {
    const fact = (name, value) => el("span", {}, `${name} `, el("b", {}, value));
    const metrics = Object.entries(detail.metrics).map(([name, x]) => fact(name, shown(x)));
    const siblings = entries.map((_, p) => p).filter((p) =>
      entries[p].task === entry.task && entries[p].iteration === entry.iteration);
    return el("header", {},
      el("h3", {}, `Task ${entry.task}, attempt ${entry.sample}`,
        el("span", { class: `chip ${entry.success ? "good" : "bad"}` }, entry.success ? "solved" : "not solved"),
        el("span", { class: "chip" }, `ended by ${stopName(entry.stop)}`),
        entry.fault !== null && el("span", { class: "chip warn" }, "fault")),
      el("div", { class: "facts" }, fact("return", shown(entry.return)), fact("steps", shown(entry.steps)),
        entry.iteration !== null && fact("iteration", shown(entry.iteration)), metrics),
      entry.fault !== null && el("p", { class: "fault" }, visible(entry.fault)),
      siblings.length > 1 && el("div", { class: "siblings" }, "attempts at this task",
        siblings.slice(0, 64).map((p) => el("button", { type: "button", "aria-current": p === place ? "true" : null,
          title: `attempt ${entries[p].sample}: return ${shown(entries[p].return)}`, onclick: () => open(p) },
        `${entries[p].sample} ${entries[p].success ? "✓" : "✗"}`))),
      drawTree(entries, detailOf, place, open));
  }

  function colours() {
    const field = el("fieldset", {}, el("legend", {}, "Colour tokens by"));
    for (const colour of COLOURS) {
      const there = largestOf(colour, detail) !== null;
      if (!there && colour.key === "reference") continue;
      field.append(el("label", { class: there ? null : "off" },
        el("input", { type: "radio", name: "colour", value: colour.key, disabled: !there,
          onchange: () => recolour(colour.key) }), colour.label));
    }
    return el("div", { class: "colours" }, field, el("span", { class: "scale", id: "scale" }),
      el("span", { class: "scale" }, el("i", { class: "masked" }), "not trained on"));
  }

  function recolour(key) {
    chosen = key;
    paint();
    coloured(key);
  }

  /** The colour that is in use: the chosen one, or the first that this trajectory knows. */
  function inUse() {
    const possible = COLOURS.filter((one) => largestOf(one, detail) !== null);
    return possible.find((one) => one.key === chosen) || possible[0] || null;
  }

  function paint() {
    const colour = inUse();
    for (const input of target.querySelectorAll('input[name="colour"]')) {
      input.checked = colour !== null && input.value === colour.key;
    }
    const scale = byId("scale");
    scale.replaceChildren();
    if (colour === null) return;
    const largest = largestOf(colour, detail);
    if (largest === 0) scale.append("0 everywhere");
    else if (colour.kind === "diverging") {
      scale.append(shown(-largest, 2), el("i", { class: "diverging" }), shown(largest, 2, true));
    } else scale.append("0", el("i", { class: "rising" }), shown(largest, 2));
    const paintOf = colour.kind === "diverging" ? (x) => diverging(x, largest, "transparent") : (x) => rising(x, largest);
    for (const token of target.querySelectorAll(".token")) {
      const step = detail.steps[token.dataset.step];
      token.style.backgroundColor = paintOf(colour.of(step, Number(token.dataset.at)));
    }
  }

  function drawStep(step, number, entry) {
    const said = el("div", { class: step.spaced ? "said spaced" : "said" });
    const isMasked = (i) => step.masked || (step.mask && !step.mask[i]);
    (step.tokens || [step.said || ""]).forEach((token, i) => {
      said.append(el("span", { class: isMasked(i) ? "token masked" : "token", "data-step": number, "data-at": i },
        visibleToken(token)));
      if (step.spaced) said.append(document.createElement("wbr"));
    });
    const parent = entry.parent;
    const flags = [
      step.invalid && el("span", { class: "chip warn" }, "not understood"),
      step.masked && el("span", { class: "chip" }, "masked: not trained on"),
      step.fault && el("span", { class: "chip warn" }, "fault"),
      step.fresh && el("span", { class: "chip" }, "context rebuilt"),
      step.stop === "length" && el("span", { class: "chip warn" }, "cut at the limit of tokens"),
      parent && parent.id !== null && parent.step === number && el("span", { class: "chip" },
        parent.token ? `branches off ${parent.id} here, after ${counted(parent.token, "token")}` : `branches off ${parent.id} here`),
    ].filter(Boolean);
    const info = Object.entries(step.info || {}).map(([name, x]) => `${name}: ${x}`).join("\n");
    return el("section", { class: "step", tabindex: -1, id: `step${number}`, "aria-label": `Step ${number + 1}` },
      el("div", { class: "number" }, el("b", {}, number + 1),
        counted(step.tokens ? step.tokens.length : (step.logprob || []).length, "token")),
      el("div", { class: "text" }, read(step), said, el("div", { class: "flags" }, flags),
        info && el("p", { class: "info" }, visible(info))),
      numbers(step));
  }

  /** What was read, never trained on: grey and hatched, and folded where it is long. */
  function read(step) {
    const text = step.read || "";
    const long = text.length > 900 || text.split("\n").length > 9;
    const box = el("div", { class: long ? "read masked long" : "read masked",
      title: `read, not trained on: ${counted(step.read_tokens || 0, "token")}` }, visible(long ? text.slice(0, 900) : text));
    if (!text) return null;
    if (!long) return box;
    const more = el("button", { type: "button", class: "more", "aria-expanded": "false",
      onclick: () => {
        const opened = box.classList.toggle("long") === false;
        box.replaceChildren(...visible(opened ? text : text.slice(0, 900)));
        more.textContent = opened ? "show less" : label;
        more.setAttribute("aria-expanded", String(opened));
      } });
    const label = `show all ${counted(text.length, "character")}`;
    more.textContent = label;
    return [box, more];
  }

  function numbers(step) {
    const list = el("dl", { class: "numbers" });
    const add = (name, x, title, signed) => {
      if (!known(x)) return;
      const sign = !signed || !x ? (x ? "" : "zero") : x > 0 ? "plus" : "minus";
      list.append(el("dt", { title }, name), el("dd", { class: sign }, shown(x, 3, signed)));
    };
    add("reward", step.reward, "of the environment");
    if (known(step.trained_reward) && step.trained_reward !== step.reward) {
      add("trained reward", step.trained_reward, "that credit was computed from");
    }
    add("return", step.return, "sum of the trained rewards from this step on, undiscounted");
    add("value", step.value, "of the critic, before the step");
    add("target", step.target, "of the critic");
    add("advantage", step.advantage, step.advantages ? "mean over the tokens" : "of all tokens of the step", true);
    return list;
  }

  /** Moves the focus to another step. */
  function stepBy(by) {
    const steps = [...target.querySelectorAll(".step")];
    const here = steps.indexOf(document.activeElement.closest(".step"));
    const next = steps[here < 0 ? (by > 0 ? 0 : steps.length - 1) : here + by];
    if (next) focusStep(next);
  }
  function focusStep(step) {
    step.focus({ preventScroll: true });
    step.scrollIntoView({ block: "nearest" });
  }

  function describe(token) {
    const step = detail.steps[token.dataset.step];
    const i = Number(token.dataset.at);
    const text = step.tokens ? step.tokens[i] : null;
    const lines = text === null ? [] : [text === "" ? "part of a character" : JSON.stringify(text)];
    for (const colour of COLOURS) {
      const x = colour.of(step, i);
      if (known(x)) lines.push(`${colour.label}  ${shown(x, 4, colour.kind === "diverging")}`);
    }
    if (token.classList.contains("masked")) lines.push("not trained on");
    return lines.map(spelt).join("\n");
  }

  const tip = byId("tip");
  target.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".token");
    tip.hidden = token === null;
    if (token === null) return;
    tip.textContent = describe(token);
    const box = token.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  });
  target.addEventListener("pointerleave", () => { tip.hidden = true; });

  return {
    show, stepBy,
    toStep: (number) => { const step = byId(`step${number}`); if (step) focusStep(step); },
    nextColour: () => {
      const possible = COLOURS.filter((one) => largestOf(one, detail) !== null);
      const here = possible.indexOf(inUse());
      if (possible.length) recolour(possible[(here + 1) % possible.length].key);
    },
    isOpen: () => detail !== null,
  };
}
