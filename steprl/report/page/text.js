// Elements, numbers and texts. Text is only ever set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}
const el = (name, attributes, ...children) =>
  filled(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) =>
  filled(document.createElementNS(SVG, name), attributes, children);

/** A number for reading: few digits, a true minus, a dash where there is none. */
function shown(x, digits = 3, sign = false) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  const size = Math.abs(x);
  let text;
  if (size === 0) text = "0";
  else if (size >= 1e6 || size < 1e-4) text = size.toExponential(Math.max(0, digits - 1));
  else if (Number.isInteger(size)) text = size.toLocaleString("en");
  else text = String(Number(size.toPrecision(size >= 1000 ? 5 : digits)));
  return (x < 0 ? "−" : sign && x > 0 ? "+" : "") + text;
}
const counted = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;

// What a reader would not see, or what would move text about: shown as its code.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** The text as nodes, with characters that cannot be seen spelt out. */
function visible(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(ODD)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    const code = match[0].charCodeAt(0).toString(16).padStart(4, "0");
    nodes.push(el("span", { class: "odd" }, `\\u${code}`));
    end = match.index + 1;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}

/** The text of a token: line ends get a sign, part of a character is a sign alone. */
function visibleToken(text) {
  if (text === "") return [el("span", { class: "sign" }, "⋯")];
  const nodes = [];
  text.split("\n").forEach((line, place) => {
    if (place > 0) nodes.push(el("span", { class: "sign" }, "↵"), "\n");
    nodes.push(...visible(line));
  });
  return nodes;
}

const spelt = (text) => text.replace(ODD, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
