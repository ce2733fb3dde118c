// The last scores with both thresholds.

import { byId, makeSvg, setText, score } from "./dom.js";

const KEPT = 300;
const FEWEST_SLOTS = 60;
const HEIGHT = 240;
const EDGE = { left: 44, right: 92, top: 12, bottom: 22 };

export class ScoreChart {
  constructor() {
    this.box = byId("chart");
    this.text = byId("scores-text");
    this.points = new Map();
    this.drawn = "";
    for (const item of document.querySelectorAll(".legend li")) {
      const sign = makeSvg("svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" }, makeSvg("path", { d: SIGNS[item.dataset.mark] }));
      item.prepend(sign);
    }
    new ResizeObserver(() => { this.drawn = ""; }).observe(this.box);
  }

  add({ first, cameras }) {
    if (first) this.points.clear();
    for (const [name, added] of Object.entries(cameras)) {
      const all = [...(this.points.get(name) || []), ...added.map(asPoint)];
      this.points.set(name, all.slice(-KEPT));
    }
  }

  show(name) {
    const points = this.points.get(name) || [];
    const width = Math.max(280, this.box.clientWidth);
    const key = `${name}/${points.length ? points[points.length - 1].number : 0}/${width}`;
    if (key === this.drawn) return;
    this.drawn = key;
    const summary = describe(points);
    setText(this.text, points.length ? `last ${points.length}` : "no parts yet");
    this.box.replaceChildren(draw(points, width, summary));
  }
}

const SIGNS = {
  pass: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
  review: "M0-5L5 4H-5z",
  reject: "M-4-4H4V4H-4z",
  error: "M-4-4L4 4M4-4L-4 4",
};

function asPoint([number, trigger, at, verdict, value, pass, reject]) {
  return { number, trigger, at, mark: verdict.toLowerCase(), value, pass, reject };
}

function describe(points) {
  if (!points.length) return "No scores yet";
  const over = points.filter((point) => point.value !== null && point.pass !== null && point.value > point.pass).length;
  const last = points[points.length - 1];
  return `Chart of the last ${points.length} scores: ${over} above the pass threshold. The newest is ${score(last.value)}, ` +
    `the pass threshold ${score(last.pass)}, the reject threshold ${score(last.reject)}.`;
}

function draw(points, width, summary) {
  const top = highest(points);
  const slots = Math.max(FEWEST_SLOTS, points.length);
  const x = (index) => EDGE.left + ((width - EDGE.left - EDGE.right) * (index + .5 + slots - points.length)) / slots;
  const y = (value) => HEIGHT - EDGE.bottom - (HEIGHT - EDGE.top - EDGE.bottom) * Math.min(1, value / top);
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": summary });
  for (const value of [0, top / 2, top]) {
    svg.append(makeSvg("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value), class: "axis" }));
    svg.append(label(EDGE.left - 6, y(value) + 4, score(Number(value.toPrecision(2))), "end"));
  }
  const last = points[points.length - 1];
  if (last) {
    const bandHeight = Math.abs(y(last.pass ?? 0) - y(last.reject ?? 0));
    const isOne = last.pass === last.reject;
    limit(svg, points, x, y, "pass", isOne ? 0 : Math.max(0, 14 - bandHeight) / 2, width, isOne ? "pass limit" : "pass");
    if (!isOne) limit(svg, points, x, y, "reject", -Math.max(0, 14 - bandHeight) / 2, width, "reject");
  }
  points.forEach((point, index) => {
    const at = `translate(${x(index).toFixed(1)} ${(point.value === null ? HEIGHT - EDGE.bottom - 6 : y(point.value)).toFixed(1)})`;
    const mark = makeSvg("path", { d: SIGNS[point.mark], transform: at, class: "mark" });
    mark.dataset.mark = point.mark;
    svg.append(mark);
  });
  svg.append(label(EDGE.left, HEIGHT - 5, `${slots} parts ago`, "start"), label(width - EDGE.right, HEIGHT - 5, "now", "end"));
  return svg;
}

function highest(points) {
  const limits = points.map((point) => point.reject ?? point.pass ?? 0);
  const scores = points.map((point) => point.value ?? 0);
  const limitTop = Math.max(0, ...limits);
  return Math.max(limitTop * 1.4, Math.min(Math.max(0, ...scores) * 1.05, limitTop ? limitTop * 4 : Infinity), 1e-9);
}

// A threshold follows the product, so it is a line with steps, and a gap where none applies.
function limit(svg, points, x, y, kind, shift, width, name) {
  let path = "";
  let isDrawing = false;
  points.forEach((point, index) => {
    const value = point[kind];
    if (value !== null) path += `${isDrawing ? "L" : "M"}${x(index - .5).toFixed(1)} ${y(value).toFixed(1)}L${x(index + .5).toFixed(1)} ${y(value).toFixed(1)}`;
    isDrawing = value !== null;
  });
  const suffix = kind === "reject" ? "-reject" : "";
  svg.append(makeSvg("path", { d: path, class: `limit limit${suffix}` }));
  const value = points[points.length - 1][kind];
  if (value === null) return;
  const text = label(width - EDGE.right + 6, y(value) + 4 + shift, `${name} ${score(value)}`, "start");
  text.setAttribute("class", `limit-text limit-text${suffix}`);
  svg.append(text);
}

function label(x, y, text, anchor) {
  const element = makeSvg("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
