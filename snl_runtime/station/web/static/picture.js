// The live picture of the selected camera: the next one is asked for when the last has come, and only while somebody can see it.

import { byId, setText } from "./dom.js";

const SHORTEST_PAUSE_MS = 250;

export class LivePicture {
  constructor() {
    this.image = byId("picture");
    this.nothing = byId("no-picture");
    this.text = byId("picture-text");
    this.overlay = byId("overlay");
    this.shownKey = "";
    this.isLoading = false;
    this.lastLoad = 0;
    this.overlay.addEventListener("change", () => { this.shownKey = ""; });
  }

  async show(camera, isStale) {
    this.image.dataset.stale = String(isStale);
    if (isStale || this.isLoading || document.hidden || performance.now() - this.lastLoad < SHORTEST_PAUSE_MS) return;
    const key = `${camera.name}/${camera.picture}/${this.overlay.checked}`;
    if (camera.picture === null) {
      this.say("No picture yet", "");
      return;
    }
    if (key === this.shownKey) return;
    this.isLoading = true;
    try {
      if (await this.load(camera)) this.shownKey = key;
    } catch {
      this.say("The picture could not be loaded", "");
    } finally {
      this.isLoading = false;
      this.lastLoad = performance.now();
    }
  }

  async load(camera) {
    const address = `/api/frame/${encodeURIComponent(camera.name)}.jpg?overlay=${this.overlay.checked ? 1 : 0}`;
    const answer = await fetch(address);
    if (!answer.ok) {
      this.say((await answer.json()).error, "");
      return true;
    }
    const old = this.image.src;
    this.image.src = URL.createObjectURL(await answer.blob());
    if (old) URL.revokeObjectURL(old);
    await this.image.decode();
    const verdict = answer.headers.get("X-Verdict");
    const trigger = answer.headers.get("X-Trigger-Id");
    this.image.alt = `Camera ${camera.name}, trigger ${trigger}: ${verdict}`;
    this.image.hidden = false;
    this.nothing.hidden = true;
    setText(this.text, `${camera.name}, trigger ${trigger}: ${verdict}`);
    // The server may have given the picture before, to keep its rate: then the newest is still to come.
    return Number(answer.headers.get("X-Number")) >= camera.picture;
  }

  say(words, caption) {
    this.image.hidden = true;
    this.nothing.hidden = false;
    setText(this.nothing, words);
    setText(this.text, caption || "\u00a0");
  }
}
