// Commands to the selected camera; they are only there if the station has a token, and nothing here changes a threshold.

import { byId, setText } from "./dom.js";

export class Commands {
  constructor() {
    this.box = byId("commands");
    this.trigger = byId("trigger");
    this.reset = byId("reset");
    this.answer = byId("command-answer");
    this.camera = "";
    this.trigger.addEventListener("click", () => this.send("trigger", (done) => `Trigger ${done.trigger_id} begun`));
    this.reset.addEventListener("click", () => this.send("reset", () => "The fault is reset"));
  }

  show(camera, isOffered, isLinkLost) {
    this.camera = camera.name;
    this.box.hidden = !isOffered;
    this.trigger.hidden = camera.line.state === "ContinuousExecution";
    this.trigger.disabled = isLinkLost || !camera.line.ready;
    this.reset.disabled = isLinkLost || !camera.line.fault;
  }

  async send(command, say) {
    setText(this.answer, "");
    try {
      const answer = await fetch(`/api/cameras/${encodeURIComponent(this.camera)}/${command}`, { method: "POST" });
      const done = await answer.json();
      setText(this.answer, answer.ok ? say(done) : done.error);
    } catch {
      setText(this.answer, "The station does not answer");
    }
  }
}
