/** The editor of one node: brings picture, clicks, masks and gestures together in one element. */

import { Painter } from "./canvas.js";
import { copied, paste } from "./clipboard.js";
import { make } from "./dom.js";
import { LargeWindow } from "./fullscreen.js";
import { PointerGestures } from "./gestures.js";
import {
  graphZoom,
  isOpen,
  isShown,
  isVueRenderer,
  onDensityChange,
  onGraphDrawn,
  ownsUndo,
  recordChange,
} from "./host.js";
import { handleKey } from "./keyboard.js";
import { LiveMasks } from "./live_masks.js";
import { ClickModel } from "./model.js";
import { way } from "./motion.js";
import { MotionRow } from "./motion_row.js";
import { Source } from "./source.js";
import { say } from "./text.js";
import { Stepper, Toolbar, bySize } from "./toolbar.js";
import { INCLUDE, MAX_OBJECTS } from "./values.js";
import { View } from "./view.js";

const MESSAGE_SECONDS = 6;
const LATE_MS = 300; // Nodes 2.0 is not done with some changes at once

/** Whose element it is, to tell which node an element on the page belongs to. */
const nodeOf = new WeakMap();

export class ClickEditor {
  large = false;
  /** @type {{x: number, y: number} | null} where the keyboard would click */
  crosshair = null;
  view = new View();
  #hovered = -1;
  #attached = false;
  #soon = 0;
  /** What the masks were last asked for, and whether coarsely. */
  #masked = { clicks: null, coarse: false };
  /** @type {(() => void)[]} what undoes `attach` */
  #releases = [];
  #message = { text: "", timer: 0 };
  #text = make("div", { class: "followclick-message", role: "status" });
  #spoken = make("div", { class: "followclick-spoken", "aria-live": "polite" });
  #stage = make("div", { class: "followclick-stage" });
  #hint = make("div", { class: "followclick-hint" });

  /**
   * @param {object} node
   * @param {string} inputName of the widget
   * @param {{motion: boolean}} options
   */
  constructor(node, inputName, { motion }) {
    this.node = node;
    this.model = new ClickModel((change) => this.#changed(change));
    this.source = new Source(node, () => this.#pictureChanged());
    this.masks = new LiveMasks(node, this.model, this.source, () => this.#update());
    this.canvas = make("canvas", { class: "followclick-canvas", tabindex: "0", role: "application" });
    ownsUndo(this.canvas);
    this.painter = new Painter(this.canvas, this.view, () => this.#scene());
    this.gestures = new PointerGestures(this);
    const actions = {
      copy: () => this.#copyByButton(),
      paste: () => this.#pasteByButton(),
      toggleLarge: () => this.toggleLarge(),
      step: (direction) => this.step(direction),
    };
    this.toolbar = new Toolbar(this.model, actions);
    this.stepper = new Stepper(actions);
    this.motion = motion ? new MotionRow(this.model) : null;
    this.#build(inputName);
    nodeOf.set(this.element, node);
    this.window = new LargeWindow(this.body, () => this.#largeToggled());
    this.#listen();
    this.#update();
  }

  get ready() {
    return this.source.picture !== null;
  }

  /** Come to life: the node is part of a graph. */
  attach() {
    if (this.#attached) return;
    this.#attached = true;
    const observer = new ResizeObserver(() => this.painter.fit(this.#zoom));
    observer.observe(this.#stage);
    this.#releases = [
      () => observer.disconnect(),
      onGraphDrawn(() => this.refresh()),
      onDensityChange(() => this.painter.fit(this.#zoom)),
      this.masks.attach(),
    ];
    this.refresh();
  }

  /** Leave nothing behind: no listener, no request, no timer. */
  detach() {
    if (!this.#attached) return;
    this.#attached = false;
    this.gestures.cancel();
    this.window.close();
    for (const release of this.#releases.splice(0)) release();
    this.source.forget();
    clearTimeout(this.#message.timer);
    clearTimeout(this.#soon);
    this.#update();
    this.painter.stop();
  }

  /** Look whether anything upstream is another; cheap, as it is called whenever the graph is drawn. */
  refresh() {
    if (!this.#attached) return;
    if (!isOpen(this.node)) return this.detach();
    this.#takePlace();
    this.source.refresh();
    this.masks.refresh();
    return this.painter.fit(this.#zoom);
  }

  /** Look again when what changes the graph now is done with it; not every change is followed by a drawing. */
  refreshSoon() {
    clearTimeout(this.#soon);
    this.#soon = setTimeout(() => {
      this.refresh();
      this.#soon = setTimeout(() => this.refresh(), LATE_MS);
    }, 0);
  }

  /** After a run: the exact frame that the node received. */
  ran(output) {
    this.source.ran(output?.followclick_frame?.[0]);
    this.refresh();
  }

  hover(index) {
    if (index === this.#hovered) return;
    this.#hovered = index;
    this.canvas.classList.toggle("followclick-over-point", index >= 0);
    this.painter.request();
  }

  moved() {
    this.painter.request();
  }

  refused() {
    this.#say(say("full"));
  }

  cancelGesture() {
    const dragging = this.gestures.dragging;
    this.gestures.cancel();
    return dragging;
  }

  placeCrosshair(x, y) {
    this.crosshair = { x: Math.min(Math.max(x, 0), 1), y: Math.min(Math.max(y, 0), 1) };
    this.#speak(say("crosshair", this.#pixels(this.crosshair)));
    this.painter.request();
  }

  toggleLarge() {
    if (this.window.open) this.window.close();
    else if (this.ready) this.window.show(say("elsewhere"));
  }

  /** Choose the next larger or smaller of the masks that the active object can be. */
  step(direction) {
    const info = this.masks.infoOf(this.model.active);
    if (!(info?.candidates > 1)) return;
    const order = bySize(info);
    const rank = (order.indexOf(info.candidate) + direction + order.length) % order.length;
    this.model.choose(this.model.active, order[rank]);
  }

  /**
   * Nodes 2.0 goes on showing the widget of a node when one of the same number comes in its place, as when a node is
   * converted to a subgraph which is then opened: put ours where that is.
   */
  #takePlace() {
    if (this.element.isConnected || !isVueRenderer() || !isShown(this.node)) return;
    const stale = [...document.querySelectorAll(".followclick-editor")].find((element) => {
      const node = nodeOf.get(element);
      return String(node?.id) === String(this.node.id) && !isShown(node);
    });
    stale?.replaceWith(this.element);
  }

  get #zoom() {
    return this.large ? 1 : graphZoom();
  }

  #build(inputName) {
    const below = make("div", { class: "followclick-status" }, this.stepper.element, this.#text);
    this.#stage.append(this.canvas, this.#hint);
    this.body = make("div", { class: "followclick-body" }, this.toolbar.element, this.#stage, below);
    if (this.motion) this.body.append(this.motion.element);
    this.body.append(this.#spoken);
    this.element = make("div", { class: "followclick-editor", "data-input": inputName }, this.body);
    this.element.classList.toggle("followclick-with-motion", Boolean(this.motion));
  }

  #listen() {
    this.body.addEventListener("keydown", (event) => this.#keyDown(event));
    this.canvas.addEventListener("keyup", () => this.#finishNudge());
    this.canvas.addEventListener("blur", () => this.#blurred());
    this.canvas.addEventListener("pointerdown", () => (this.crosshair = null));
    for (const type of ["pointerenter", "focus"]) this.canvas.addEventListener(type, () => this.#approached());
    this.body.addEventListener("copy", (event) => this.#copy(event));
    this.body.addEventListener("paste", (event) => this.#paste(event));
  }

  #keyDown(event) {
    if (this.gestures.dragging && event.key !== "Escape") {
      event.preventDefault(); // the clicks are in the hand of the pointer
      event.stopPropagation();
      return;
    }
    const typing = event.target.tagName === "INPUT";
    const moves = event.target !== this.canvas && !event.ctrlKey && !event.metaKey && event.key !== "Delete";
    if (typing || (moves && event.key !== "Backspace")) return;
    if (!handleKey(event, this)) return;
    event.preventDefault();
    event.stopPropagation();
    if (this.model.selected >= 0) this.crosshair = null;
  }

  #approached() {
    if (isOpen(this.node)) this.attach(); // if it was given up meanwhile
    this.masks.prepare();
  }

  #finishNudge() {
    if (!this.gestures.dragging) this.model.finish();
  }

  #blurred() {
    this.#finishNudge();
    this.crosshair = null;
    this.painter.request();
  }

  /** @param {import("./model.js").Change} change */
  #changed(change) {
    if (change === "load") this.gestures.cancel(); // what was being dragged may be gone
    if (change !== "view") this.#updateMasks(change === "drag");
    if (change === "edit") recordChange();
    if (change !== "drag") this.#speakSelected();
    this.#update();
  }

  /** Ask for the masks of the clicks, unless only the motion is another. */
  #updateMasks(coarse) {
    const { clicks } = this.model;
    if (clicks === this.#masked.clicks && (coarse || !this.#masked.coarse)) return;
    this.#masked = { clicks, coarse };
    this.masks.update({ dragging: coarse });
  }

  #pictureChanged() {
    const { picture } = this.source;
    this.view.picture = picture && [picture.naturalWidth, picture.naturalHeight];
    this.view.reset();
    if (picture) this.model.setPicture(this.view.picture);
    this.masks.update({ dragging: false });
    this.#update();
  }

  #largeToggled() {
    this.large = this.window.open;
    this.view.reset();
    this.toolbar.showLarge(this.large);
    this.painter.fit(this.#zoom);
    this.canvas.focus({ preventScroll: true });
    this.painter.request();
  }

  #update() {
    this.toolbar.update(this.ready);
    this.motion?.update(this.ready);
    this.stepper.update(this.masks.infoOf(this.model.active));
    this.canvas.setAttribute("aria-label", say("canvas", { count: this.model.clicks.length }));
    this.canvas.classList.toggle("followclick-ready", this.ready);
    this.body.classList.toggle("followclick-working", this.masks.working);
    this.#hint.textContent = this.ready ? "" : this.source.hint;
    this.#hint.hidden = this.ready;
    this.#showText();
    this.painter.request();
  }

  #showText() {
    const { problem, misfit } = this.model;
    const fault = (problem && say("unreadable", { reason: problem })) || this.masks.problem || this.source.problem;
    const warning = misfit && this.ready ? say("misfit") : "";
    const standIn = this.source.exact ? "" : say("stand_in", { through: this.source.through });
    const help = this.ready && !this.model.clicks.length ? say("how") : "";
    const text = fault || warning || this.#message.text || this.masks.note || (this.ready && standIn) || help;
    this.#text.textContent = text || (this.masks.working ? say("working") : "");
    this.#text.title = text || "";
    this.#text.dataset.kind = fault ? "fault" : warning ? "warning" : text ? "note" : "working";
  }

  /** Say something for a while. */
  #say(text) {
    clearTimeout(this.#message.timer);
    const timer = setTimeout(() => {
      this.#message = { text: "", timer: 0 };
      this.#showText();
    }, MESSAGE_SECONDS * 1000);
    this.#message = { text, timer };
    this.#showText();
  }

  #speak(text) {
    if (this.#spoken.textContent !== text) this.#spoken.textContent = text;
  }

  #speakSelected() {
    const click = this.model.clicks[this.model.selected];
    if (!click || !this.ready) return;
    const key = click.label === INCLUDE ? "point_included" : "point_excluded";
    const place = { index: this.model.selected + 1, count: this.model.clicks.length, object: click.object };
    this.#speak(say(key, { ...place, ...this.#pixels(click) }));
  }

  #pixels({ x, y }) {
    const [width, height] = this.view.picture ?? [0, 0];
    return { x: Math.min(Math.floor(x * width), width - 1), y: Math.min(Math.floor(y * height), height - 1) };
  }

  /** @returns {import("./canvas.js").Scene} */
  #scene() {
    const { model } = this;
    return {
      picture: this.source.picture,
      masks: this.masks.shown,
      clicks: this.ready ? model.clicks : [],
      selected: model.selected,
      hovered: this.#hovered,
      active: model.active,
      crosshair: this.crosshair,
      arrows: this.motion && this.ready ? this.#arrows() : [],
    };
  }

  #arrows() {
    const numbers = Array.from({ length: MAX_OBJECTS }, (_, index) => index + 1);
    return numbers.flatMap((object) => {
      const from = this.masks.middleOf(object) ?? this.model.clicksOf(object).find((click) => click.label === INCLUDE);
      return from ? [{ from, object, way: way(this.model.motionOf(object)) }] : [];
    });
  }

  #copy(event) {
    if (event.target.tagName === "INPUT" || !this.ready) return;
    const { text, message } = copied(this.model, this.view.picture);
    event.preventDefault();
    event.stopPropagation();
    if (text) event.clipboardData.setData("text/plain", text);
    this.#say(message);
  }

  #paste(event) {
    if (event.target.tagName === "INPUT" || !this.ready) return;
    event.preventDefault();
    event.stopPropagation();
    this.#say(paste(this.model, this.view.picture, event.clipboardData.getData("text/plain")));
  }

  #copyByButton() {
    this.canvas.focus({ preventScroll: true });
    document.execCommand("copy"); // works without the permission and the https that navigator.clipboard asks for
  }

  async #pasteByButton() {
    this.canvas.focus({ preventScroll: true });
    try {
      this.#say(paste(this.model, this.view.picture, await navigator.clipboard.readText()));
    } catch {
      this.#say(say("paste_by_key")); // not allowed, or no https
    }
  }
}
