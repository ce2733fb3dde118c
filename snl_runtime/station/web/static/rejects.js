// The last parts that did not pass: small pictures, and one in large with its regions.

import { badge, byId, make, setText, score, showFigures, time } from "./dom.js";

export class Rejects {
  constructor() {
    this.list = byId("rejects");
    this.items = new Map();
    this.dialog = byId("part");
    this.overlay = byId("part-overlay");
    this.image = byId("part-picture");
    this.opened = null;
    this.overlay.addEventListener("change", () => this.showPicture());
    this.image.addEventListener("error", () => this.sayNoPicture("Its image is no longer in memory"));
  }

  show(rejects) {
    const kept = new Set(rejects.map((part) => part.number));
    for (const [number, item] of this.items) {
      // The one under the keyboard stays until the focus moves on.
      if (!kept.has(number) && !item.contains(document.activeElement)) {
        item.remove();
        this.items.delete(number);
      }
    }
    for (const part of [...rejects].reverse()) {
      if (!this.items.has(part.number)) {
        const item = this.makeItem(part);
        this.items.set(part.number, item);
        this.list.prepend(item);
      }
    }
    byId("no-rejects").hidden = rejects.length > 0;
    setText(byId("rejects-text"), rejects.length ? `${rejects.length} kept, newest first` : "");
  }

  makeItem(part) {
    const thumb = make("div", { class: "thumb" });
    if (part.has_image) {
      const image = make("img", { src: `/api/rejects/${part.number}.jpg?thumbnail=1&overlay=1`, alt: "", loading: "lazy", width: 240, height: 180 });
      image.addEventListener("error", () => image.replaceWith(make("span", { text: "No image" })));
      thumb.append(image);
    } else {
      thumb.append(make("span", { text: "No image" }));
    }
    thumb.append(badge(part.verdict));
    const words = make("div", { class: "reject-text" }, make("b", { text: nameOf(part) }), make("small", { text: `${part.camera}, ${time(part.captured_at)}` }));
    const button = make("button", { type: "button", "aria-haspopup": "dialog" }, thumb, words);
    button.addEventListener("click", () => this.open(part));
    return make("li", {}, button);
  }

  open(part) {
    this.opened = part;
    byId("part-title").replaceChildren(badge(part.verdict), make("span", { text: ` ${nameOf(part)}` }));
    setText(byId("part-reason"), part.reason);
    showFigures(byId("part-figures"), [
      ["Score", score(part.score)], ["Passes up to", score(part.threshold)], ["Review up to", score(part.reject_threshold)],
      ["Reason code", part.reason_code], ["Product", part.product ?? "–"], ["Camera", part.camera], ["Trigger", String(part.trigger_id ?? "–")],
      ["Regions", String(part.regions_in_all)], ["Captured", new Date(part.captured_at * 1000).toLocaleString()],
    ]);
    const rows = part.regions.map(({ box_xyxy: [left, top, right, bottom], score: value }, index) => {
      const cells = [String(index + 1), `${left}, ${top}`, `${right - left} × ${bottom - top}`, score(value)];
      return make("tr", {}, ...cells.map((text) => make("td", { text })));
    });
    byId("part-regions").replaceChildren(...rows);
    this.dialog.querySelector(".regions").hidden = rows.length === 0;
    this.showPicture();
    this.dialog.showModal();
  }

  showPicture() {
    if (!this.opened.has_image) {
      this.sayNoPicture("The frame has no image");
      return;
    }
    byId("part-no-picture").hidden = true;
    this.image.hidden = false;
    this.image.alt = `${nameOf(this.opened)}: ${this.opened.verdict}, ${this.opened.regions_in_all} regions`;
    this.image.src = `/api/rejects/${this.opened.number}.jpg?overlay=${this.overlay.checked ? 1 : 0}`;
  }

  sayNoPicture(words) {
    this.image.hidden = true;
    byId("part-no-picture").hidden = false;
    setText(byId("part-no-picture"), words);
  }
}

function nameOf(part) {
  const name = part.part_id === null ? `Trigger ${part.trigger_id ?? "–"}` : `Part ${part.part_id}`;
  return part.product === null ? name : `${name}, ${part.product}`;
}
