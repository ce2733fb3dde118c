// Listens to the station and shows what it says, or that it says nothing.

import { ScoreChart } from "./chart.js";
import { Commands } from "./commands.js";
import { byId, setText, time } from "./dom.js";
import { Freshness } from "./freshness.js";
import { showPanels } from "./panels.js";
import { LivePicture } from "./picture.js";
import { Rejects } from "./rejects.js";
import { Tiles, look } from "./tiles.js";

const TICK_MS = 500;
const RETRY_MS = 2000;
// A connection that was cut without a word is only noticed by its silence.
const HUNG_S = 10;

const freshness = new Freshness();
const chart = new ScoreChart();
const picture = new LivePicture();
const rejects = new Rejects();
const commands = new Commands();
const tiles = new Tiles((name) => {
  selected = name;
  show();
});

let state = null;
let selected = null;
let events = null;
let listeningSince = 0;

function show() {
  showLink();
  if (state === null || !state.cameras.length) return;
  const camera = state.cameras.find((each) => each.name === selected) || state.cameras[0];
  selected = camera.name;
  tiles.show(state.cameras, selected, freshness, state.stale_after_s);
  const isStale = look(camera, freshness, state.stale_after_s).shown === "stale";
  picture.show(camera, isStale);
  chart.show(selected);
  commands.show(camera, state.takes_commands, freshness.isLinkLost);
}

function showLink() {
  const isLost = freshness.isLinkLost;
  const isFirst = freshness.lastHeard === null;
  byId("link").dataset.link = isLost ? "lost" : "live";
  document.body.dataset.link = isLost ? "lost" : "live";
  setText(byId("link-text"), isLost ? (isFirst ? "connecting" : "no connection") : "live");
  setText(byId("clock"), time(freshness.stationNow));
  const alert = byId("alert");
  const words = isLost && !isFirst ? `No data since ${time(freshness.lastHeard)}. The station does not answer; nothing here is current.` : "";
  if (alert.textContent !== words) {
    alert.textContent = words;
    alert.hidden = !words;
  }
}

function listen() {
  events = new EventSource("/api/events");
  listeningSince = performance.now();
  const mine = events;
  events.addEventListener("scores", (event) => chart.add(JSON.parse(event.data)));
  events.addEventListener("rejects", (event) => rejects.show(JSON.parse(event.data)));
  events.addEventListener("state", (event) => {
    state = JSON.parse(event.data);
    freshness.note(state.now);
    setText(byId("title"), state.title);
    document.title = state.title;
    byId("sign-out").hidden = !state.takes_commands;
    show();
    const camera = state.cameras.find((each) => each.name === selected);
    if (camera) showPanels(state, camera);
  });
  events.addEventListener("error", async () => {
    mine.close();
    await goToLoginIfSignedOut();
    setTimeout(() => { if (mine === events) listen(); }, RETRY_MS);
  });
}

function listenAgainIfHung() {
  if (events.readyState === EventSource.CLOSED || freshness.silence < HUNG_S || performance.now() - listeningSince < HUNG_S * 1000) return;
  events.close();
  listen();
}

async function goToLoginIfSignedOut() {
  try {
    if ((await fetch("/api/state")).status === 401) location.assign("/login");
  } catch {
    // The station does not answer at all; the page says so by itself.
  }
}

setInterval(() => {
  show();
  listenAgainIfHung();
}, TICK_MS);
document.addEventListener("visibilitychange", show);
listen();
