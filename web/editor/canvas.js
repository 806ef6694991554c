/** Draws the picture, the masks over it, the clicks, and the arrow of the motion. */

import { colourOf, tint } from "./tint.js";
import { CLIP_FRAMES } from "./motion.js";
import { INCLUDE } from "./values.js";

/**
 * @typedef {object} Scene what there is to see
 * @property {HTMLImageElement | null} picture
 * @property {import("./masks.js").Masks | null} masks
 * @property {readonly import("./values.js").Click[]} clicks
 * @property {number} selected
 * @property {number} hovered
 * @property {number} active
 * @property {{x: number, y: number} | null} crosshair for the keyboard
 * @property {{from: {x: number, y: number}, way: {x: number, y: number, bothWays: boolean}, object: number}[]} arrows
 */

export const POINT_RADIUS = 6.5;
const DARK = "rgba(12, 14, 18, 0.9)";
const LIGHT = "#fff";
const MAX_DENSITY = 4;

export class Painter {
  #canvas;
  #context;
  #view;
  #readScene;
  #frame = 0;
  #density = 1;
  /** The picture as large as it is shown; scaling a photo anew for each frame would cost the most. */
  #scaled = { key: "", canvas: /** @type {OffscreenCanvas | null} */ (null), picture: null };
  #tinted = { key: "", masks: null, layer: /** @type {OffscreenCanvas | null} */ (null), left: 0, top: 0 };

  /** Frames drawn so far; the tests and the benchmark read it. */
  frames = 0;

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./view.js").View} view
   * @param {() => Scene} readScene
   */
  constructor(canvas, view, readScene) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    this.#view = view;
    this.#readScene = readScene;
  }

  /** Draw before the next frame is shown; any number of calls until then draw once. */
  request() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  stop() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#scaled = { key: "", canvas: null, picture: null };
    this.#tinted = { key: "", masks: null, layer: null, left: 0, top: 0 };
  }

  /**
   * Take over the canvas' size on the page, and how many pixels one of its own is on the screen.
   * @param {number} zoom of the graph, which scales the element
   */
  fit(zoom) {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const density = Math.min(Math.max(zoom, 1) * devicePixelRatio, MAX_DENSITY);
    const [pixelWidth, pixelHeight] = [Math.round(width * density), Math.round(height * density)];
    if (!width || (this.#canvas.width === pixelWidth && this.#canvas.height === pixelHeight)) return;
    this.#canvas.width = pixelWidth;
    this.#canvas.height = pixelHeight;
    this.#density = density;
    this.#view.size = [width, height];
    this.request();
  }

  #draw() {
    this.frames++;
    const scene = this.#readScene();
    const context = this.#context;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (!scene.picture) return;
    this.#drawPicture(scene.picture);
    if (scene.masks) this.#drawMasks(scene.masks);
    context.setTransform(this.#density, 0, 0, this.#density, 0, 0);
    for (const arrow of scene.arrows) this.#drawArrow(arrow);
    scene.clicks.forEach((click, index) => {
      this.#drawPoint(click, index === scene.selected, index === scene.hovered, click.object === scene.active);
    });
    if (scene.crosshair) this.#drawCrosshair(scene.crosshair, colourOf(scene.active));
  }

  /** The picture's rectangle in the canvas' own pixels. */
  get #rect() {
    const { left, top, width, height } = this.#view.rect;
    const d = this.#density;
    return { left: left * d, top: top * d, width: width * d, height: height * d };
  }

  #drawPicture(picture) {
    const { left, top, width, height } = this.#rect;
    const context = this.#context;
    context.imageSmoothingQuality = "high";
    // Zoomed in, the picture is larger than the canvas, and shows its pixels when they are large.
    if (this.#view.zoomed) {
      context.imageSmoothingEnabled = this.#view.scale < 4;
      context.drawImage(picture, left, top, width, height);
      return;
    }
    const [w, h] = [Math.max(Math.round(width), 1), Math.max(Math.round(height), 1)];
    const key = `${w}x${h}`;
    if (this.#scaled.key !== key || this.#scaled.picture !== picture) {
      const canvas = new OffscreenCanvas(w, h);
      const scaled = canvas.getContext("2d");
      scaled.imageSmoothingQuality = "high";
      scaled.drawImage(picture, 0, 0, w, h);
      this.#scaled = { key, canvas, picture };
    }
    context.drawImage(this.#scaled.canvas, Math.round(left), Math.round(top));
  }

  #drawMasks(masks) {
    const { left, top, width, height } = this.#rect;
    const { width: roomWidth, height: roomHeight } = this.#canvas;
    const key = [left, top, width, height, roomWidth, roomHeight].join();
    if (this.#tinted.key !== key || this.#tinted.masks !== masks) {
      const painted = tint(masks, { left, top, width, height }, [roomWidth, roomHeight], this.#density);
      const layer = painted && new OffscreenCanvas(painted.image.width, painted.image.height);
      layer?.getContext("2d").putImageData(painted.image, 0, 0);
      this.#tinted = { key, masks, layer, left: painted?.left ?? 0, top: painted?.top ?? 0 };
    }
    if (this.#tinted.layer) this.#context.drawImage(this.#tinted.layer, this.#tinted.left, this.#tinted.top);
  }

  #drawPoint(click, selected, hovered, active) {
    const context = this.#context;
    const { x, y } = this.#view.toScreen(click);
    const included = click.label === INCLUDE;
    const colour = colourOf(click.object);
    const radius = POINT_RADIUS + (hovered || selected ? 1 : 0);
    context.globalAlpha = active || selected || hovered ? 1 : 0.75;
    disc(context, x, y, radius + 1.5, selected ? LIGHT : DARK);
    disc(context, x, y, radius, included ? colour : DARK);
    if (!included || selected) ring(context, x, y, radius - 1, included ? DARK : colour);
    context.fillStyle = included ? DARK : LIGHT;
    context.fillRect(x - 3, y - 0.75, 6, 1.5);
    if (included) context.fillRect(x - 0.75, y - 3, 1.5, 6);
    context.globalAlpha = 1;
  }

  #drawCrosshair(at, colour) {
    const { x, y } = this.#view.toScreen(at);
    const lines = new Path2D();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      lines.moveTo(x + 4 * dx, y + 4 * dy);
      lines.lineTo(x + 12 * dx, y + 12 * dy);
    }
    outlined(this.#context, lines, colour, 2);
  }

  /** As long as the way that the object goes in a clip, with a mark for each frame. */
  #drawArrow({ from, way, object }) {
    const { width } = this.#view.rect;
    const length = Math.hypot(way.x, way.y) * width;
    if (length < 1) return;
    const unit = { x: (way.x * width) / length, y: (way.y * width) / length };
    const middle = this.#view.toScreen(from);
    const start = way.bothWays ? { x: middle.x - (unit.x * length) / 2, y: middle.y - (unit.y * length) / 2 } : middle;
    const end = { x: start.x + unit.x * length, y: start.y + unit.y * length };
    const lines = new Path2D();
    lines.moveTo(start.x, start.y);
    lines.lineTo(end.x, end.y);
    head(lines, end, unit, length);
    if (way.bothWays) head(lines, start, { x: -unit.x, y: -unit.y }, length);
    marks(lines, start, unit, length / CLIP_FRAMES);
    outlined(this.#context, lines, colourOf(object), 2);
  }
}

function head(path, tip, unit, length) {
  const size = Math.min(9, 3 + length / 3);
  path.moveTo(tip.x - size * (unit.x - 0.6 * unit.y), tip.y - size * (unit.y + 0.6 * unit.x));
  path.lineTo(tip.x, tip.y);
  path.lineTo(tip.x - size * (unit.x + 0.6 * unit.y), tip.y - size * (unit.y - 0.6 * unit.x));
}

function marks(path, start, unit, step) {
  if (step < 7) return;
  for (let frame = 1; frame < CLIP_FRAMES; frame++) {
    const [x, y] = [start.x + unit.x * step * frame, start.y + unit.y * step * frame];
    path.moveTo(x - 2.5 * unit.y, y + 2.5 * unit.x);
    path.lineTo(x + 2.5 * unit.y, y - 2.5 * unit.x);
  }
}

function outlined(context, path, colour, width) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = DARK;
  context.lineWidth = width + 2.5;
  context.stroke(path);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

function disc(context, x, y, radius, colour) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
}

function ring(context, x, y, radius, colour) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.stroke();
}
