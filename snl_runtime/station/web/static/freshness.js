// How old what the page knows is. An old verdict must never look like a current one, so every doubt counts as old.

export const LINK_LOST_S = 3;

export class Freshness {
  constructor() {
    this.heard = null;
  }

  note(stationSeconds) {
    this.heard = { wall: Date.now(), steady: performance.now(), station: stationSeconds };
  }

  // Seconds since the last message; of two clocks the larger, because one may stand still while a computer sleeps.
  get silence() {
    if (this.heard === null) return Infinity;
    return Math.max(Date.now() - this.heard.wall, performance.now() - this.heard.steady) / 1000;
  }

  get isLinkLost() {
    return this.silence > LINK_LOST_S;
  }

  // What the station's clock says now, or last said.
  get stationNow() {
    return this.heard === null ? Date.now() / 1000 : this.heard.station + this.silence;
  }

  // Time of the last sign of life, by the station's clock; null if there was none.
  get lastHeard() {
    return this.heard === null ? null : this.heard.station;
  }

  age(camera) {
    return camera.age_s === null ? Infinity : camera.age_s + this.silence;
  }
}
