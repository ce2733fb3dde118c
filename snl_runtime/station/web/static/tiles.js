// The verdict of each camera in large letters.

import { byId, make, setText, symbol, score, time } from "./dom.js";

const WORDS = {
  pass: "PASS", review: "REVIEW", reject: "REJECT", error: "ERROR", fault: "FAULT", busy: "BUSY",
  waiting: "WAITING", starting: "STARTING", stopped: "STOPPED", stale: "NO DATA",
};
const VERDICTS = ["pass", "review", "reject", "error"];

// What a camera shows at this moment: the station's word, unless it is too old.
export function look(camera, freshness, staleAfter) {
  if (freshness.isLinkLost) {
    return { shown: "stale", text: `No data since ${since(freshness.lastHeard)}: the station does not answer. ${lastOf(camera)}` };
  }
  if (VERDICTS.includes(camera.shown) && freshness.age(camera) > staleAfter) {
    const at = freshness.stationNow - freshness.age(camera);
    return { shown: "stale", text: `No data since ${since(Number.isFinite(at) ? at : null)}: no new part. ${lastOf(camera)}` };
  }
  return { shown: camera.shown, text: textOf(camera) };
}

const since = (seconds) => (seconds === null ? "the page was opened" : time(seconds));

function lastOf(camera) {
  return camera.last === null ? "" : `The last part was ${camera.last.verdict}.`;
}

function textOf(camera) {
  const { shown, last, line } = camera;
  if (shown === "fault") return line.fault_reason;
  if (shown === "busy") return `Trigger ${line.trigger_id} is inspected`;
  if (shown === "waiting") return "Ready for a part";
  if (shown === "starting") return "Opening camera and outputs";
  if (shown === "stopped") return "Takes no part";
  if (last === null) return "";
  const part = last.part_id === null ? `trigger ${last.trigger_id}` : `part ${last.part_id}`;
  const product = last.product === null ? "" : `${last.product}, `;
  if (shown === "error") return `${product}${part}: ${last.reason}`;
  return `${product}${part}, score ${score(last.score)} of at most ${score(last.threshold)}`;
}

export class Tiles {
  constructor(onSelect) {
    this.box = byId("verdicts");
    this.announcer = byId("announcer");
    this.onSelect = onSelect;
    this.tiles = new Map();
    this.announced = new Map();
    this.waiting = "";
    this.lastAnnouncement = 0;
  }

  show(cameras, selected, freshness, staleAfter) {
    const names = cameras.map((camera) => camera.name);
    if (names.join("\n") !== [...this.tiles.keys()].join("\n")) this.build(names);
    for (const camera of cameras) {
      const { shown, text } = look(camera, freshness, staleAfter);
      const tile = this.tiles.get(camera.name);
      if (tile.root.dataset.shown !== shown) {
        tile.root.dataset.shown = shown;
        tile.main.querySelector("svg").replaceWith(symbol(shown, "tile-symbol"));
        setText(tile.word, WORDS[shown]);
        tile.word.style.setProperty("--letters", WORDS[shown].length);
      }
      setText(tile.text, text);
      if (names.length > 1) tile.root.setAttribute("aria-pressed", String(camera.name === selected));
      this.noteForAnnouncement(camera.name, shown, text, names.length > 1);
    }
    this.announce();
  }

  build(names) {
    this.tiles.clear();
    document.querySelector("main").dataset.cameras = String(names.length);
    const roots = names.map((name) => {
      const word = make("strong", { class: "tile-word" });
      const text = make("span", { class: "tile-text" });
      const main = make("span", { class: "tile-main" }, symbol("stale", "tile-symbol"), word);
      const body = make("span", { class: "tile-body" }, make("span", { class: "tile-name", text: name }), main, text);
      const root = make(names.length > 1 ? "button" : "div", { class: "tile", data: { camera: name } }, body);
      if (names.length > 1) {
        root.type = "button";
        root.addEventListener("click", () => this.onSelect(name));
      }
      this.tiles.set(name, { root, main, word, text });
      return root;
    });
    this.box.replaceChildren(...roots);
  }

  noteForAnnouncement(name, shown, text, isNamed) {
    if (this.announced.get(name) === shown) return;
    this.announced.set(name, shown);
    const words = `${isNamed ? `${name}: ` : ""}${WORDS[shown]}. ${text}`;
    this.waiting = this.waiting && isNamed && !this.waiting.startsWith(`${name}:`) ? `${this.waiting} ${words}` : words;
  }

  // At most one every two seconds: a screen reader that is interrupted ten times a second says nothing.
  announce() {
    const now = performance.now();
    if (!this.waiting || now - this.lastAnnouncement < 2000) return;
    setText(this.announcer, this.waiting);
    this.waiting = "";
    this.lastAnnouncement = now;
  }
}
