/** The masks of the clicks as they stand, from the same function that the run uses. */

import { inputIndex, inputLink, onQueue, postSegment } from "./host.js";
import { MaskRequests } from "./masks.js";
import { say } from "./text.js";
import { middles } from "./tint.js";
import { findDrawnMask, findSegmenter } from "./upstream.js";
import { INCLUDE } from "./values.js";

// While dragging, masks are as large as they are looked at; at rest they are the run's own, up to this size.
const DRAGGED_SIDE = 640;
const RESTING_SIDE = 2048;
const MAX_RETRIES = 10; // while nothing runs: the host still tidies up after a run, or many editors ask at once

export class LiveMasks {
  /** @type {import("./masks.js").Masks | null} what to paint */
  shown = null;
  /** Why there is no mask, or "". */
  problem = "";
  /** What should be known, or "". */
  note = "";
  #id = newId();
  #node;
  #model;
  #source;
  #onChange;
  #requests;
  #middles = new Map();
  #asked = "";
  #wired = "";
  #waits = false;
  #queued = false;
  #retries = 0;
  #retryTimer = 0;
  #prepared = "";

  /**
   * @param {object} node
   * @param {import("./model.js").ClickModel} model
   * @param {import("./source.js").Source} source
   * @param {() => void} onChange
   */
  constructor(node, model, source, onChange) {
    this.#node = node;
    this.#model = model;
    this.#source = source;
    this.#onChange = onChange;
    this.#requests = new MaskRequests({
      onMasks: (masks) => this.#received(masks),
      onFailure: (error) => this.#failed(error),
      onState: () => onChange(),
    });
  }

  get working() {
    return this.#requests.running;
  }

  /** @returns {() => void} what undoes it */
  attach() {
    const stop = onQueue((remaining) => this.#queueChanged(remaining));
    return () => {
      stop();
      this.#stopWaiting();
      this.#reset();
      this.#requests.cancel();
    };
  }

  infoOf(object) {
    return this.shown?.objects.find((info) => info.object === object);
  }

  middleOf(object) {
    return this.#middles.get(object);
  }

  /** Let the server look at the picture ahead, as the user is about to click; the first mask then comes as fast as others. */
  prepare() {
    const image = this.#source.image;
    const key = JSON.stringify(image);
    if (!image || key === this.#prepared) return;
    this.#prepared = key;
    if (this.#asked) return;
    const request = { image, segmenter: this.#settings().segmenter, clicks: this.#value([]), editor: newId() };
    postSegment(request).catch(() => {}); // what is wrong is said when a mask is asked for
  }

  /** Ask again if what is wired, or how the mask is grown, is another. */
  refresh() {
    const wired = JSON.stringify([this.#settings(), this.#unseen()]);
    if (wired === this.#wired) return;
    this.#wired = wired;
    this.update({ dragging: false });
    this.#onChange(); // the note may be another though the masks are the same
  }

  /** @param {{dragging: boolean, again?: boolean}} how again: after the server was busy */
  update({ dragging, again = false }) {
    const request = this.#request(dragging);
    const asked = request ? JSON.stringify(request) : "";
    if (asked === this.#asked) return;
    this.#asked = asked;
    this.#stopWaiting();
    if (!again) this.#retries = 0;
    if (request) this.#requests.ask(request, { urgent: !dragging });
    else {
      this.#requests.cancel();
      this.#reset();
      this.#onChange();
    }
  }

  #request(dragging) {
    const image = this.#source.image;
    const clicks = this.#answerable();
    if (!image || (!clicks.length && !this.#settings().drawn_mask)) return null;
    const value = this.#value(clicks);
    const size = scaledDown(...value.image_size, dragging ? DRAGGED_SIDE : RESTING_SIDE);
    return { image, ...this.#settings(), clicks: value, editor: this.#id, size };
  }

  #value(clicks) {
    const { naturalWidth, naturalHeight } = this.#source.picture;
    return { image_size: [naturalWidth, naturalHeight], clicks };
  }

  /** Clicks of objects that include something; others would be refused, as they are when the graph runs. */
  #answerable() {
    const drawn = Boolean(this.#settings().drawn_mask); // a drawn mask is object 1
    const includes = (object) =>
      (drawn && object === 1) || this.#model.clicksOf(object).some(({ label }) => label === INCLUDE);
    const lacking = this.#model.clicks.find(({ object }) => !includes(object));
    const unseen = this.#unseen();
    this.note = lacking ? say("only_excluded", { object: lacking.object }) : unseen && say(unseen);
    return this.#model.clicks.filter(({ object }) => includes(object));
  }

  /** The word for what is wired but known only when the graph runs, so that its mask will be another; or "". */
  #unseen() {
    const wired = (name) => Boolean(inputLink(this.#node, inputIndex(this.#node, name)));
    if (wired("drawn_mask") && !findDrawnMask(this.#node, "drawn_mask")) return "wired_mask";
    if (wired("positive_points") || wired("negative_points")) return "wired_points";
    return wired("grow") ? "wired_grow" : "";
  }

  #settings() {
    const grow = this.#node.widgets?.find(({ name }) => name === "grow")?.value;
    return {
      segmenter: findSegmenter(this.#node),
      drawn_mask: findDrawnMask(this.#node, "drawn_mask"),
      grow: Number.isInteger(grow) ? grow : 0,
    };
  }

  #received(masks) {
    this.problem = "";
    this.shown = masks;
    this.#middles = middles(masks);
    this.#onChange();
  }

  #failed(error) {
    this.#reset();
    this.problem = error.busy ? "" : error.status ? error.message : say("no_server", { reason: error.message });
    this.note = error.busy ? say("waiting") : "";
    if (error.busy) this.#wait(error.retryAfter);
    this.#onChange();
  }

  /** For the queue to run empty, or, if nothing runs, as long as the server says. */
  #wait(seconds) {
    this.#stopWaiting();
    this.#waits = true;
    if (this.#queued || this.#retries >= MAX_RETRIES) return;
    this.#retries++;
    this.#retryTimer = setTimeout(() => this.#askAgain(), seconds * 1000);
  }

  #stopWaiting() {
    clearTimeout(this.#retryTimer);
    this.#waits = false;
  }

  #queueChanged(remaining) {
    this.#queued = remaining > 0;
    if (this.#queued) return clearTimeout(this.#retryTimer);
    this.#retries = 0;
    return this.#waits ? this.#askAgain() : undefined;
  }

  #askAgain() {
    this.#asked = "";
    this.update({ dragging: false, again: true });
  }

  #reset() {
    this.shown = null;
    this.#middles = new Map();
    this.#asked = "";
    this.problem = "";
  }
}

/** [width, height] with no side above `side`, or null if they are as they are. */
function scaledDown(width, height, side) {
  const factor = side / Math.max(width, height);
  return factor < 1 ? [Math.round(width * factor), Math.round(height * factor)] : null;
}

/** Also where the page came without https and so has no crypto.randomUUID. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12})$/, "$1-$2-4$3-8$4-$5");
}
