// Elements, text and symbols. Everything from the station reaches the page as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") element.textContent = value;
    else if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// One shape per verdict, so that it can be told without its color.
const SHAPES = {
  pass: [["circle", { cx: 50, cy: 50, r: 42 }], ["path", { d: "M29 52l14 15 29-32" }]],
  review: [["path", { d: "M50 9L94 88H6z" }], ["path", { d: "M50 38v24M50 73v3" }]],
  reject: [["path", { d: "M32 8h36l24 24v36L68 92H32L8 68V32z" }], ["path", { d: "M34 34l32 32M66 34L34 66" }]],
  error: [["path", { d: "M50 5l45 45-45 45L5 50z" }], ["path", { d: "M39 41c0-15 23-15 23 0 0 9-12 10-12 19M50 71v3" }]],
  fault: [["path", { d: "M50 9L94 88H6z" }], ["path", { d: "M54 34L43 58h15L48 78" }]],
  busy: [["circle", { cx: 50, cy: 50, r: 42 }], ["path", { d: "M50 26v25l17 11" }]],
  waiting: [["circle", { cx: 50, cy: 50, r: 42 }], ["path", { d: "M30 50h1M50 50h1M70 50h1" }]],
  starting: [["circle", { cx: 50, cy: 50, r: 42 }], ["path", { d: "M50 70V32M34 47l16-16 16 16" }]],
  stopped: [["rect", { x: 9, y: 9, width: 82, height: 82, rx: 10 }], ["path", { d: "M36 36h28v28H36z" }]],
  stale: [["circle", { cx: 50, cy: 50, r: 42, "stroke-dasharray": "14 9" }], ["path", { d: "M30 50h40" }]],
};

export function symbol(shown, className = "") {
  const lines = { fill: "none", stroke: "currentColor", "stroke-width": 8, "stroke-linecap": "round", "stroke-linejoin": "round" };
  const shapes = (SHAPES[shown] || SHAPES.stale).map(([tag, attributes]) => makeSvg(tag, attributes));
  return makeSvg("svg", { viewBox: "0 0 100 100", class: className, "aria-hidden": "true", ...lines }, ...shapes);
}

export const badge = (verdict) => make("div", { class: "badge", data: { mark: verdict.toLowerCase() } }, symbol(verdict.toLowerCase()), verdict);

// Names and figures, updated in place: a list that is built anew under a screen reader or a cursor is lost to both.
export function showFigures(list, figures) {
  const names = figures.map(([name]) => name).join("\n");
  if (list.dataset.names !== names) {
    list.dataset.names = names;
    list.replaceChildren(...figures.map(([name]) => make("div", {}, make("dt", { text: name }), make("dd"))));
  }
  figures.forEach(([, text, isTrouble], index) => {
    const item = list.children[index];
    setText(item.querySelector("dd"), text);
    item.dataset.trouble = String(Boolean(isTrouble));
  });
}

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const score = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

export const time = (seconds) =>
  new Date(seconds * 1000).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
