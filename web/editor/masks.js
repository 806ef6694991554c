/**
 * Asks the server for the masks under the clicks: one request at a time, and of those that wait only the newest, so
 * that dragging paints as many masks as the server can make.
 */

import { postSegment } from "./host.js";

/**
 * @typedef {{object: number, candidates: number, candidate: number, scores: number[], areas?: number[]}} MaskInfo
 * @typedef {{width: number, height: number, bits: Uint8Array, objects: MaskInfo[]}} Masks bit k of a pixel: whether it
 *   belongs to objects[k]
 * @typedef {{onMasks: (masks: Masks) => void, onFailure: (failure: MaskError) => void, onState: () => void}} Listener
 */

const BUSY = 503;
const OUTDATED = 409;

export class MaskError extends Error {
  /**
   * @param {string} message
   * @param {number} status of the answer, 0 if there was none
   * @param {number} retryAfter seconds
   */
  constructor(message, status, retryAfter = 1) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  get busy() {
    return this.status === BUSY;
  }
}

export class MaskRequests {
  /** @type {AbortController | null} */
  #running = null;
  /** @type {object | null} */
  #waiting = null;
  #listener;

  /** @param {Listener} listener */
  constructor(listener) {
    this.#listener = listener;
  }

  get running() {
    return this.#running !== null;
  }

  /**
   * @param {object} request the body of the route
   * @param {{urgent?: boolean}} options urgent: what runs is given up for it
   */
  ask(request, { urgent = false } = {}) {
    this.#waiting = request;
    if (urgent) this.#abort();
    if (!this.#running) this.#next();
  }

  /** Give up whatever runs or waits. */
  cancel() {
    this.#waiting = null;
    this.#abort();
  }

  #abort() {
    this.#running?.abort();
    this.#running = null;
  }

  async #next() {
    const request = this.#waiting;
    this.#waiting = null;
    if (!request) return;
    const controller = new AbortController();
    this.#running = controller;
    this.#listener.onState();
    try {
      const masks = await segment(request, controller.signal);
      if (!controller.signal.aborted) this.#listener.onMasks(masks);
    } catch (error) {
      if (!controller.signal.aborted && error.status !== OUTDATED) this.#listener.onFailure(asMaskError(error));
    }
    if (this.#running !== controller) return; // given up meanwhile; another took its place
    this.#running = null;
    this.#listener.onState();
    this.#next();
  }
}

/** @returns {Promise<Masks>} */
async function segment(request, signal) {
  const answer = await postSegment(request, signal);
  if (!answer.ok) {
    const text = await answer.text();
    const retryAfter = Number(answer.headers.get("Retry-After")) || 1;
    throw new MaskError(sentence(text) || `${answer.status} ${answer.statusText}`, answer.status, retryAfter);
  }
  const objects = JSON.parse(answer.headers.get("X-FollowClick-Objects") ?? "[]");
  return { ...(await readBits(await answer.arrayBuffer())), objects };
}

function sentence(text) {
  try {
    return JSON.parse(text).error;
  } catch {
    return "";
  }
}

function asMaskError(error) {
  return error instanceof MaskError ? error : new MaskError(error.message, 0);
}

/** The grey values of a PNG, exactly as they were written. */
async function readBits(png) {
  const bitmap = await createImageBitmap(new Blob([png]), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const bits = new Uint8Array(width * height);
  for (let index = 0; index < bits.length; index++) bits[index] = data[index * 4];
  return { width, height, bits };
}
