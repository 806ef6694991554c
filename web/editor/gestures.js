/** What the pointer does on the picture. */

import { POINT_RADIUS } from "./canvas.js";
import { forwardToGraph } from "./host.js";
import { EXCLUDE, INCLUDE } from "./values.js";

const DRAG_DISTANCE = 3; // screen pixels; a hand is never quite still
const REACH = 6; // screen pixels at which a point is hit however far the graph is zoomed out
const [LEFT, MIDDLE, RIGHT] = [0, 1, 2];
const WHEEL_ZOOM = 0.0015;
const isMac = /mac/i.test(globalThis.navigator?.platform ?? "");

/**
 * @typedef {object} Surface what the gestures act on
 * @property {HTMLCanvasElement} canvas
 * @property {import("./model.js").ClickModel} model
 * @property {import("./view.js").View} view
 * @property {boolean} ready whether there is a picture to click on
 * @property {boolean} large whether the wheel and the middle button move the picture, not the graph
 * @property {(index: number) => void} hover
 * @property {() => void} refused a click that cannot be taken
 * @property {() => void} moved the view is another
 */

export class PointerGestures {
  #surface;
  /** @type {{id: number, index: number, isNew: boolean, moved: boolean, x: number, y: number} | null} */
  #drag = null;
  /** @type {{id: number, x: number, y: number} | null} */
  #pan = null;

  /** @param {Surface} surface */
  constructor(surface) {
    this.#surface = surface;
    const { canvas } = surface;
    const on = (type, handle) => canvas.addEventListener(type, handle, { passive: false });
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", () => this.cancel());
    on("lostpointercapture", () => this.cancel());
    on("pointerleave", () => surface.hover(-1));
    on("wheel", (event) => this.#wheel(event));
    // Nodes 2.0 opens its menu unless both are done.
    on("contextmenu", (event) => (event.preventDefault(), event.stopPropagation()));
    on("dragstart", (event) => event.preventDefault());
  }

  get dragging() {
    return this.#drag !== null;
  }

  /** Put back what is being dragged, and let go of the picture. */
  cancel() {
    this.#pan = null;
    if (!this.#drag) return;
    this.#drag = null;
    this.#surface.model.cancel();
  }

  #down(event) {
    const { canvas, model, view } = this.#surface;
    canvas.focus({ preventScroll: true });
    if (event.button === MIDDLE) return this.#startPan(event);
    if (!this.#surface.ready || this.#drag || (event.button !== LEFT && event.button !== RIGHT)) return;
    const at = this.#local(event);
    const hit = this.#pointAt(at);
    const excludes = event.button === RIGHT || event.altKey || (isMac && event.ctrlKey);
    if (hit < 0 && !view.toPicture(at).inside) return model.select(-1);
    if (hit < 0 && model.full) return this.#surface.refused();
    this.#capture(event.pointerId);
    model.begin();
    if (hit >= 0) model.select(hit);
    else {
      const { x, y } = view.toPicture(at);
      model.add(x, y, excludes ? EXCLUDE : INCLUDE);
    }
    const index = hit >= 0 ? hit : model.clicks.length - 1;
    this.#drag = { id: event.pointerId, index, isNew: hit < 0, moved: false, x: event.clientX, y: event.clientY };
  }

  #move(event) {
    if (this.#pan?.id === event.pointerId) return this.#movePan(event);
    const drag = this.#drag;
    if (!drag) {
      if (event.buttons & 4) forwardToGraph(event);
      return this.#surface.hover(this.#surface.ready ? this.#pointAt(this.#local(event)) : -1);
    }
    if (drag.id !== event.pointerId) return undefined;
    drag.moved ||= Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > DRAG_DISTANCE;
    if (!drag.moved) return undefined;
    const { x, y } = this.#surface.view.toPicture(this.#local(event));
    return this.#surface.model.move(drag.index, x, y);
  }

  #up(event) {
    const drag = this.#drag;
    // With several buttons held, the one event of the pointer's release names the last of them.
    if (this.#pan?.id === event.pointerId) this.#pan = null;
    else if (drag?.id !== event.pointerId) return event.button === MIDDLE ? forwardToGraph(event) : undefined;
    if (drag?.id !== event.pointerId) return undefined;
    this.#drag = null;
    if (!drag.isNew && !drag.moved) this.#surface.model.remove(drag.index);
    return this.#surface.model.finish();
  }

  #wheel(event) {
    if (!this.#surface.large) return forwardToGraph(event);
    event.preventDefault();
    event.stopPropagation();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1;
    this.#surface.view.zoomBy(Math.exp(-event.deltaY * lines * WHEEL_ZOOM), this.#local(event));
    return this.#surface.moved();
  }

  #startPan(event) {
    event.preventDefault(); // the browser's own scrolling by the middle button
    if (!this.#surface.large) return forwardToGraph(event);
    this.#capture(event.pointerId);
    this.#pan = { id: event.pointerId, x: event.clientX, y: event.clientY };
    return undefined;
  }

  #movePan(event) {
    this.#surface.view.panBy(event.clientX - this.#pan.x, event.clientY - this.#pan.y);
    this.#pan = { ...this.#pan, x: event.clientX, y: event.clientY };
    this.#surface.moved();
  }

  /** All further events come here, also from outside the canvas; an event made by a script has no pointer to capture. */
  #capture(pointerId) {
    try {
      this.#surface.canvas.setPointerCapture(pointerId);
    } catch (error) {
      if (error.name !== "NotFoundError") throw error;
    }
  }

  /** In the canvas' own CSS pixels, whatever the graph's zoom makes of them. */
  #local({ clientX, clientY }) {
    const { canvas } = this.#surface;
    const box = canvas.getBoundingClientRect();
    return {
      x: ((clientX - box.left) / box.width) * canvas.clientWidth,
      y: ((clientY - box.top) / box.height) * canvas.clientHeight,
    };
  }

  /** The click under the pointer, the topmost first; -1 if there is none. */
  #pointAt(at) {
    const { canvas, model, view } = this.#surface;
    const zoom = canvas.getBoundingClientRect().width / canvas.clientWidth;
    const reach = Math.max(POINT_RADIUS + 1.5, REACH / zoom);
    return model.clicks.findLastIndex((click) => {
      const place = view.toScreen(click);
      return Math.hypot(place.x - at.x, place.y - at.y) <= reach;
    });
  }
}
