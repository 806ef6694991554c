/**
 * Where the picture lies in the editor: fitted into it, or zoomed and moved in the large one.
 *
 * Lengths are CSS pixels of the canvas, before the graph's own zoom.
 *
 * @typedef {{left: number, top: number, width: number, height: number}} Rect
 * @typedef {{x: number, y: number}} Point
 */

const MARGIN = 10; // room for a point on the very edge
const MAX_ZOOM = 40;

export class View {
  #zoom = 1;
  /** @type {Point} the part of the picture that lies in the middle */
  #centre = { x: 0.5, y: 0.5 };
  /** @type {[number, number]} */
  size = [0, 0];
  /** @type {[number, number] | null} */
  picture = null;

  get zoomed() {
    return this.#zoom > 1;
  }

  /** Screen pixels per picture pixel. */
  get scale() {
    return this.#fit() * this.#zoom;
  }

  /** @returns {Rect} of the whole picture */
  get rect() {
    const [width, height] = this.picture ?? [0, 0];
    const scale = this.scale;
    return {
      left: this.size[0] / 2 - this.#centre.x * width * scale,
      top: this.size[1] / 2 - this.#centre.y * height * scale,
      width: width * scale,
      height: height * scale,
    };
  }

  /** @returns {Point & {inside: boolean}} 0..1 over the picture, and whether it was hit */
  toPicture({ x, y }) {
    const { left, top, width, height } = this.rect;
    const point = { x: (x - left) / width, y: (y - top) / height };
    return { ...point, inside: point.x >= 0 && point.x <= 1 && point.y >= 0 && point.y <= 1 };
  }

  /** @returns {Point} */
  toScreen({ x, y }) {
    const { left, top, width, height } = this.rect;
    return { x: left + x * width, y: top + y * height };
  }

  /** Keeps what lies at `at` where it is. */
  zoomBy(factor, at = { x: this.size[0] / 2, y: this.size[1] / 2 }) {
    if (!this.picture) return;
    const fixed = this.toPicture(at);
    this.#zoom = Math.min(Math.max(this.#zoom * factor, 1), MAX_ZOOM);
    const now = this.toScreen(fixed);
    this.panBy(at.x - now.x, at.y - now.y);
  }

  panBy(x, y) {
    const { width, height } = this.rect;
    if (!width) return;
    this.#centre = {
      x: this.#held(this.#centre.x - x / width, width, this.size[0]),
      y: this.#held(this.#centre.y - y / height, height, this.size[1]),
    };
  }

  reset() {
    this.#zoom = 1;
    this.#centre = { x: 0.5, y: 0.5 };
  }

  /** A side that fits stays centred; of one that does not, no more than its end comes into view. */
  #held(centre, length, room) {
    const half = Math.min((room - 2 * MARGIN) / 2 / length, 0.5);
    return Math.min(Math.max(centre, half), 1 - half);
  }

  #fit() {
    if (!this.picture) return 0;
    const room = this.size.map((side) => Math.max(side - 2 * MARGIN, 1));
    return Math.min(room[0] / this.picture[0], room[1] / this.picture[1]);
  }
}
