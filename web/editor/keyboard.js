/** What the keys do while the picture has the focus. */

import { EXCLUDE, INCLUDE } from "./values.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAR = 10;
const ZOOM_STEP = 1.25;

/**
 * @typedef {import("./gestures.js").Surface & {
 *   crosshair: {x: number, y: number} | null,
 *   placeCrosshair: (x: number, y: number) => void,
 *   cancelGesture: () => boolean,
 *   step: (direction: 1 | -1) => void,
 *   toggleLarge: () => void,
 * }} KeySurface
 */

/**
 * Do what the key means.
 * @param {KeyboardEvent} event
 * @param {KeySurface} surface
 * @returns {boolean} whether it meant something
 */
export function handleKey(event, surface) {
  const { key } = event;
  if (event.ctrlKey || event.metaKey) return handleHistory(event, surface.model);
  if (key === "Escape") return handleEscape(surface);
  if (!surface.ready) return false;
  if (key === "Tab") return walk(surface.model, event.shiftKey ? -1 : 1);
  if (key in ARROWS) return nudge(surface, ARROWS[key], event.shiftKey ? FAR : 1);
  if (key === "Enter") return addAtCrosshair(surface, event.altKey ? EXCLUDE : INCLUDE);
  if (event.altKey) return false;
  return handleLetter(key, event.shiftKey, surface) || handleSelected(key, surface.model);
}

function handleHistory({ key, shiftKey, altKey }, model) {
  const letter = key.toLowerCase();
  if (altKey || (letter !== "z" && letter !== "y")) return false;
  if (letter === "y" || shiftKey) model.redo();
  else model.undo();
  return true;
}

function handleEscape(surface) {
  if (surface.cancelGesture()) return true;
  const click = surface.model.clicks[surface.model.selected];
  if (click) {
    surface.model.select(-1);
    surface.placeCrosshair(click.x, click.y); // to go on from there
  } else if (surface.large) surface.toggleLarge();
  else return false;
  return true;
}

/** From click to click; past the last one the focus goes on to what comes next on the page. */
function walk(model, direction) {
  const next = model.selected < 0 && direction < 0 ? model.clicks.length - 1 : model.selected + direction;
  const within = next >= 0 && next < model.clicks.length;
  model.select(within ? next : -1);
  return within;
}

/** A pixel of the picture, or of the screen if those are larger. */
function nudge(surface, [right, down], distance) {
  const { model, view } = surface;
  const { width, height } = view.rect;
  const step = distance * Math.max(view.scale, 1);
  const [dx, dy] = [(right * step) / width, (down * step) / height];
  if (model.selected < 0) {
    const { x, y } = surface.crosshair ?? { x: 0.5, y: 0.5 };
    surface.placeCrosshair(x + dx, y + dy);
    return true;
  }
  const { x, y } = model.clicks[model.selected];
  model.begin(); // up to the release of the key it is one step of the history
  model.move(model.selected, x + dx, y + dy);
  return true;
}

function addAtCrosshair(surface, label) {
  const { model } = surface;
  if (model.full) surface.refused();
  else if (surface.crosshair) model.add(surface.crosshair.x, surface.crosshair.y, label);
  else if (model.selected < 0) surface.placeCrosshair(0.5, 0.5);
  else return handleEscape(surface);
  return true;
}

function handleLetter(key, shift, surface) {
  if (/^[1-8]$/.test(key)) {
    surface.model.activate(Math.min(Number(key), surface.model.objects.length + 1));
    return true;
  }
  const letter = key.toLowerCase();
  if (letter === "c") surface.step(shift ? -1 : 1);
  else if (letter === "l") surface.toggleLarge();
  else if (surface.large && "+-=0".includes(letter)) zoom(surface, letter);
  else return false;
  return true;
}

function zoom(surface, key) {
  if (key === "0") surface.view.reset();
  else surface.view.zoomBy(key === "-" ? 1 / ZOOM_STEP : ZOOM_STEP);
  surface.moved();
}

/** Delete never reaches the host, which would delete the node. */
function handleSelected(key, model) {
  const deletes = key === "Delete" || key === "Backspace";
  if (!deletes && key !== " ") return false;
  if (model.selected < 0) return true;
  if (deletes) model.remove(model.selected);
  else model.toggle(model.selected);
  return true;
}
