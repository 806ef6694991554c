/**
 * The clicks of one node: what is selected, which object is worked on, and what can be undone.
 *
 * Selections are never changed in place, so that the history is a list of them.
 */

import {
  DEFAULT_MAGNITUDE,
  EMPTY,
  EXCLUDE,
  INCLUDE,
  MAX_CLICKS,
  MAX_OBJECTS,
  aspectDiffers,
  formatValue,
  normalised,
  parseValue,
} from "./values.js";

/**
 * @typedef {import("./values.js").Selection} Selection
 * @typedef {import("./values.js").Size} Size
 * @typedef {"edit" | "drag" | "load" | "view"} Change edit: done, to be recorded; drag: still going on; load: from the
 *   host; view: only what is selected or active
 */

const HISTORY = 100;
const PRECISION = 1e6;
const round = (value) => Math.round(Math.min(Math.max(value, 0), 1) * PRECISION) / PRECISION;

export class ClickModel {
  /** @type {Selection} */
  #now = EMPTY;
  /** @type {Selection[]} */
  #past = [];
  /** @type {Selection[]} */
  #future = [];
  /** @type {Selection | null} what a gesture that goes on began with */
  #before = null;
  #text = "[]"; // as stored, until something is changed: what cannot be read is kept
  /** @type {Size | null} */
  #clickedSize = null;
  /** @type {Size | null} */
  #pictureSize = null;
  #inPixels = false;
  #onChange;

  /** Why the stored text cannot be shown, or "". */
  problem = "";
  active = 1;
  /** Index of the selected click, or -1. */
  selected = -1;

  /** @param {(change: Change) => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  get clicks() {
    return this.#now.clicks;
  }

  get selection() {
    return this.#now;
  }

  get dragging() {
    return this.#before !== null;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  get full() {
    return this.clicks.length >= MAX_CLICKS;
  }

  /** Numbers of the objects to show, from 1 to the highest in use. */
  get objects() {
    const highest = Math.max(1, this.active, ...this.clicks.map((click) => click.object));
    return Array.from({ length: highest }, (_, index) => index + 1);
  }

  /** Whether the clicks were made on a picture of other proportions than the one that is shown. */
  get misfit() {
    return this.clicks.length > 0 && aspectDiffers(this.#clickedSize, this.#pictureSize);
  }

  /** The text that the host stores. */
  get text() {
    return this.#text;
  }

  /** Take over what the host stored; that is not undone here but in the graph. */
  load(text) {
    if (text === this.#text && !this.problem) return;
    this.#text = text;
    this.#past = [];
    this.#future = [];
    this.#before = null;
    this.selected = -1;
    try {
      const { imageSize, inPixels, ...selection } = parseValue(text);
      this.#now = selection;
      this.#clickedSize = imageSize;
      this.#inPixels = inPixels;
      this.problem = "";
    } catch (error) {
      this.#now = EMPTY;
      this.#inPixels = false;
      this.problem = error.message;
    }
    this.active = Math.min(this.active, this.objects.length);
    this.#placePixels();
    this.#onChange("load");
  }

  /** @param {Size | null} size of the picture that is shown */
  setPicture(size) {
    this.#pictureSize = size;
    this.#placePixels();
  }

  /** What to show; what is not said is not stored either. @returns {Required<import("./values.js").Motion>} */
  motionOf(object) {
    return { motion_prompt: "", motion_magnitude: DEFAULT_MAGNITUDE, ...this.#now.motions[object] };
  }

  clicksOf(object) {
    return this.clicks.filter((click) => click.object === object);
  }

  select(index) {
    const kept = index >= 0 && index < this.clicks.length ? index : -1;
    if (kept === this.selected) return;
    this.selected = kept;
    if (kept >= 0) this.active = this.clicks[kept].object;
    this.#onChange("view");
  }

  activate(object) {
    if (object < 1 || object > MAX_OBJECTS) return;
    this.finish();
    this.active = object;
    if (this.selected >= 0 && this.clicks[this.selected].object !== object) this.selected = -1;
    this.#onChange("view");
  }

  /** @param {0 | 1} label */
  add(x, y, label) {
    if (this.full) return;
    const click = { x: round(x), y: round(y), label, object: this.active };
    this.selected = this.clicks.length;
    this.#edit({ clicks: [...this.clicks, click] });
  }

  /** @param {readonly import("./values.js").Click[]} clicks */
  addAll(clicks) {
    const added = clicks.slice(0, MAX_CLICKS - this.clicks.length).map((click) => ({ ...click, object: this.active }));
    if (!added.length) return 0;
    this.selected = -1;
    this.#edit({ clicks: [...this.clicks, ...added] });
    return added.length;
  }

  move(index, x, y) {
    const moved = { ...this.clicks[index], x: round(x), y: round(y) };
    this.#edit({ clicks: this.clicks.with(index, moved) });
  }

  toggle(index) {
    const { candidate: _, ...click } = this.clicks[index];
    const toggled = { ...click, label: click.label === INCLUDE ? EXCLUDE : INCLUDE };
    this.#edit({ clicks: this.clicks.with(index, toggled) });
  }

  remove(index) {
    this.selected = -1;
    this.#edit({ clicks: this.clicks.toSpliced(index, 1) });
  }

  clear() {
    if (!this.clicks.length && !Object.keys(this.#now.motions).length && !this.problem) return;
    this.finish();
    this.selected = -1;
    this.active = 1;
    this.#edit(EMPTY);
  }

  /** Choose one of the masks that the segmenter offers; only the choice on an object's last click counts. */
  choose(object, candidate) {
    const last = this.clicks.findLastIndex((click) => click.object === object);
    if (last >= 0) this.#edit({ clicks: this.clicks.with(last, { ...this.clicks[last], candidate }) });
  }

  /** @param {Partial<import("./values.js").Motion>} change */
  setMotion(object, change) {
    this.#edit({ motions: { ...this.#now.motions, [object]: { ...this.#now.motions[object], ...change } } });
  }

  /** What follows, up to `finish`, is one step of the history. */
  begin() {
    this.#before ??= this.#now;
  }

  finish() {
    const before = this.#before;
    this.#before = null;
    if (!before || before === this.#now) return;
    this.#remember(before);
    this.#onChange("edit");
  }

  /** End a gesture as if it had not been. */
  cancel() {
    const before = this.#before;
    this.#before = null;
    if (before) this.#show(before, "edit");
  }

  undo() {
    this.#travel(this.#past, this.#future);
  }

  redo() {
    this.#travel(this.#future, this.#past);
  }

  #travel(from, to) {
    this.finish();
    if (!from.length) return;
    to.push(this.#now);
    this.#show(from.pop(), "edit");
  }

  #show(selection, change) {
    this.#now = selection;
    this.selected = Math.min(this.selected, selection.clicks.length - 1);
    this.#write();
    this.#onChange(change);
  }

  #edit(change) {
    const before = this.#now;
    this.#now = { ...before, ...change };
    if (this.#pictureSize) this.#clickedSize = this.#pictureSize;
    this.problem = "";
    this.#write();
    if (this.#before === null) this.#remember(before);
    this.#onChange(this.dragging ? "drag" : "edit");
  }

  #remember(selection) {
    this.#past.push(selection);
    if (this.#past.length > HISTORY) this.#past.shift();
    this.#future = [];
  }

  #write() {
    this.#text = formatValue(this.#now, this.#clickedSize);
  }

  /** A list that came in pixels can be placed once the size of the picture is known. */
  #placePixels() {
    if (!this.#inPixels || !this.#pictureSize) return;
    this.#inPixels = false;
    this.#now = { ...this.#now, clicks: normalised(this.#now.clicks, this.#pictureSize) };
    this.#clickedSize = this.#pictureSize;
  }
}
