// Counters, times, inputs and outputs, drift and notes.

import { byId, make, number, setText, showFigures } from "./dom.js";

const VERDICTS = ["PASS", "REVIEW", "REJECT", "ERROR"];

export function showPanels(state, camera) {
  showParts(camera);
  showLatency(camera.latency_ms);
  showSource(camera);
  showSignals(camera.line);
  showLines(byId("consumers"), state.consumers.map(consumerLine), "none configured");
  showLines(byId("drift"), state.drift === null ? [] : state.drift.map(driftLine), state.drift === null ? "not configured" : "nothing to report yet");
  showLines(byId("notes"), [...observerLines(state.observers), ...state.notes.map((text) => ({ title: text }))], "none");
}

function showParts(camera) {
  const total = VERDICTS.reduce((sum, verdict) => sum + camera.verdicts[verdict], 0);
  setText(byId("yield"), camera.yield === null ? "–" : `${number(camera.yield * 100, 1)} %`);
  setText(byId("yield-text"), `${number(total)} answered`);
  const bar = byId("verdict-bar");
  if (!bar.children.length) bar.append(...VERDICTS.map((verdict) => make("i", { data: { mark: verdict.toLowerCase() } })));
  VERDICTS.forEach((verdict, index) => {
    const share = total ? camera.verdicts[verdict] / total : 0;
    bar.children[index].hidden = share === 0;
    bar.children[index].style.flexBasis = `${share * 100}%`;
    bar.children[index].style.flexShrink = "1";
  });
  showFigures(byId("verdict-counts"), VERDICTS.map((verdict) => [verdict, number(camera.verdicts[verdict])]));
  const { captured, inspected, dropped, failed, waiting } = camera.frames;
  showFigures(byId("frame-counts"), [
    ["Captured", number(captured)], ["Inspected", number(inspected)], ["Dropped", number(dropped), dropped > 0],
    ["Failed", number(failed), failed > 0], ["Waiting", number(waiting)], ["Refused", number(camera.refused)],
    ["Deadline missed", number(camera.triggers.missed), camera.triggers.missed > 0],
  ]);
}

function showLatency(latency) {
  const rows = [["Median", latency.p50], ["95 of 100", latency.p95], ["99 of 100", latency.p99], ["Longest", latency.max]];
  const list = byId("latency");
  if (!list.children.length) list.append(...rows.map(([name]) => make("div", {}, make("dt", { text: name }), make("dd"), make("i", { "aria-hidden": "true" }))));
  rows.forEach(([, value], index) => {
    setText(list.children[index].querySelector("dd"), number(value, value !== null && value < 100 ? 1 : 0));
    list.children[index].querySelector("i").style.setProperty("--share", `${latency.max ? ((value ?? 0) / latency.max) * 100 : 0}%`);
  });
}

function showSource(camera) {
  const { frames_announced, frames_faulty, frames_missing, reconnects } = camera.source;
  const figures = [
    ["State", camera.source_fault ? "no frames" : camera.line.state.replace(/(?<=[a-z])(?=[A-Z])/, " "), Boolean(camera.source_fault)], ["Faulty frames", number(frames_faulty), frames_faulty > 0],
    ["Missing frames", number(frames_missing), frames_missing > 0], ["Opened again", number(reconnects), reconnects > 0],
    ["Frames unasked", number(camera.frames_unasked)],
  ];
  if (frames_announced !== null) figures.push(["Frames in all", number(frames_announced)]);
  showFigures(byId("source"), figures);
  byId("source").firstChild.className = "long";
  byId("source-fault").hidden = !camera.source_fault;
  setText(byId("source-fault"), camera.source_fault);
}

function showSignals(line) {
  const signals = [["Ready", line.ready], ["Busy", line.busy], ["ResultValid", line.result_valid], ["Accept", line.accept], ["Fault", line.fault]];
  const list = byId("signals");
  if (!list.children.length) {
    list.append(...signals.map(([name]) => make("li", {}, make("span", { class: "lamp", "aria-hidden": "true" }), make("span", { text: name }), make("b"))));
  }
  signals.forEach(([name, isOn], index) => {
    const item = list.children[index];
    item.dataset.on = String(isOn);
    item.dataset.trouble = String(name === "Fault" && isOn);
    setText(item.querySelector("b"), isOn ? "on" : "off");
  });
}

function consumerLine(consumer) {
  const isGood = consumer.connected && !consumer.fault;
  const text = [`${number(consumer.backlog)} wait`, `${number(consumer.delivered)} delivered`, `${number(consumer.failures)} failures`];
  if (!isGood && consumer.last_error) text.push(consumer.last_error);
  return { title: `${consumer.consumer}: ${consumer.connected ? "connected" : "not connected"}`, text: text.join(", "), level: isGood ? "good" : "trouble" };
}

function driftLine({ product, figure, level, text }) {
  return { title: `${product}, ${figure}: ${level}`, text, level: { stable: "good", drift: "trouble" }[level] || "" };
}

function observerLines({ lost, failed }) {
  const lines = failed.map((name) => ({ title: `${name} failed and gets no more results; the log says why`, level: "trouble" }));
  if (lost) lines.push({ title: `${number(lost)} results came too fast for files and this page; their records are in the store` });
  return lines;
}

function showLines(list, lines, nothing) {
  const key = JSON.stringify(lines);
  if (list.dataset.key === key && list.children.length) return;
  list.dataset.key = key;
  const items = lines.map(({ title, text, level }) => {
    const item = make("li", { data: { level: level || "" } }, make("span", { text: title }));
    if (text) item.append(make("small", { text }));
    return item;
  });
  list.replaceChildren(...(items.length ? items : [make("li", { class: "muted", text: nothing })]));
}
