/**
 * The forms in which clicks come and go as text; the Python half reads the same (followclick_core/segment/clicks.py).
 *
 * Ours names the picture's size, and x and y go from 0 to 1 over the picture. A pixel list, as the point editors of
 * other packs write it, has no "label" anywhere, and x and y count pixels.
 *
 * @typedef {[number, number]} Size width and height in pixels
 * @typedef {{x: number, y: number, label: 0 | 1, object: number, candidate?: number}} Click
 * @typedef {{motion_prompt?: string, motion_magnitude?: number}} Motion what an object does not say, others say for it
 * @typedef {{clicks: readonly Click[], motions: Readonly<Record<number, Motion>>}} Selection
 * @typedef {Selection & {imageSize: Size | null, inPixels: boolean}} ParsedValue
 */

export const INCLUDE = 1;
export const EXCLUDE = 0;
export const MAX_OBJECTS = 8;
export const MAX_CLICKS = 64;
export const MAX_MAGNITUDE = 32;
export const DEFAULT_MAGNITUDE = 6;
// Clicks made at one size serve every size of the same picture; beyond this it has been cropped or replaced.
const ASPECT_TOLERANCE = 0.02;

/** @type {Selection} */
export const EMPTY = Object.freeze({ clicks: Object.freeze([]), motions: Object.freeze({}) });

/**
 * What a stored text says.
 * @param {string} text
 * @returns {ParsedValue}
 * @throws {Error} if it is none of the forms
 */
export function parseValue(text) {
  const content = JSON.parse(text?.trim() || "[]");
  const named = !Array.isArray(content);
  if (named && content?.positive) return fromTwoLists(content);
  const entries = named ? content?.clicks : content;
  if (!Array.isArray(entries)) throw new Error("not a list of clicks");
  const labelled = entries.filter((entry) => "label" in entry).length;
  const inPixels = !content.image_size && !labelled && entries.length > 0;
  if (!inPixels && !named && labelled !== entries.length) throw new Error("some clicks have a label, some have none");
  return {
    clicks: entries.map((entry) => toClick(entry, entry.label ?? INCLUDE, inPixels)),
    motions: toMotions(content.objects),
    imageSize: toSize(content.image_size),
    inPixels,
  };
}

/**
 * The one text that is stored in the widget, the workflow and the API form.
 * @param {Selection} selection
 * @param {Size | null} imageSize
 */
export function formatValue({ clicks, motions }, imageSize) {
  const objects = Object.fromEntries(Object.entries(motions).filter(([, motion]) => motion));
  if (!clicks.length && !Object.keys(objects).length) return "[]";
  if (!imageSize) return JSON.stringify(clicks);
  const value = { image_size: imageSize, clicks };
  return JSON.stringify(Object.keys(objects).length ? { ...value, objects } : value);
}

/**
 * One object's clicks as other packs take them: a pixel list, or two of them if something is excluded.
 * @param {readonly Click[]} clicks
 * @param {Size} size
 */
export function formatPixels(clicks, [width, height]) {
  const pixels = (label) =>
    clicks
      .filter((click) => click.label === label)
      .map(({ x, y }) => ({
        x: Math.min(Math.floor(x * width), width - 1),
        y: Math.min(Math.floor(y * height), height - 1),
      }));
  const [positive, negative] = [pixels(INCLUDE), pixels(EXCLUDE)];
  return JSON.stringify(negative.length ? { positive, negative } : positive);
}

/**
 * Pixel clicks, 0..1 over a picture of this size; those outside it are left out.
 * @param {readonly Click[]} clicks
 * @param {Size} size
 * @returns {Click[]}
 */
export function normalised(clicks, [width, height]) {
  return clicks
    .map((click) => ({ ...click, x: (Math.floor(click.x) + 0.5) / width, y: (Math.floor(click.y) + 0.5) / height }))
    .filter(({ x, y }) => x >= 0 && x <= 1 && y >= 0 && y <= 1);
}

/**
 * Whether clicks made on the one picture may miss on the other.
 * @param {Size | null} clicked
 * @param {Size | null} shown
 */
export function aspectDiffers(clicked, shown) {
  if (!clicked || !shown) return false;
  return Math.abs(clicked[0] / clicked[1] / (shown[0] / shown[1]) - 1) > ASPECT_TOLERANCE;
}

function fromTwoLists({ positive, negative = [] }) {
  const clicks = [
    ...positive.map((entry) => toClick(entry, INCLUDE, true)),
    ...negative.map((entry) => toClick(entry, EXCLUDE, true)),
  ];
  return { clicks, motions: {}, imageSize: null, inPixels: true };
}

/** @returns {Click} */
function toClick({ x, y, object = 1, candidate }, label, inPixels) {
  const top = inPixels ? 1e9 : 1;
  if (!(x >= 0 && x <= top && y >= 0 && y <= top)) throw new Error(`a click lies outside the picture, at (${x}, ${y})`);
  if (label !== INCLUDE && label !== EXCLUDE) throw new Error(`a click has the label ${label}`);
  if (!Number.isInteger(object) || object < 1 || object > MAX_OBJECTS) throw new Error(`a click has the object number ${object}`);
  const click = { x, y, label, object };
  return Number.isInteger(candidate) ? { ...click, candidate } : click;
}

/** @returns {Record<number, Motion>} */
function toMotions(objects) {
  const motions = {};
  for (const [number, motion] of Object.entries(objects ?? {})) {
    const [prompt, magnitude] = [motion?.motion_prompt, Number(motion?.motion_magnitude ?? NaN)];
    motions[number] = {
      ...(prompt == null ? {} : { motion_prompt: String(prompt) }),
      ...(Number.isFinite(magnitude) ? { motion_magnitude: Math.min(Math.max(magnitude, 0), MAX_MAGNITUDE) } : {}),
    };
  }
  return motions;
}

/** @returns {Size | null} */
function toSize(size) {
  return Array.isArray(size) && size.length === 2 && size.every((side) => side > 0) ? [size[0], size[1]] : null;
}
