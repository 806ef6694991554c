/** Turns masks into what is painted over the picture: each object's colour, with a line around it. */

/** Colours of the objects, told apart by the colour-blind too. */
export const COLOURS = ["#3db8ff", "#ffab1a", "#39d98a", "#ff6fae", "#b89bff", "#ffe45c", "#ff7847", "#7be8e0"];
export const colourOf = (object) => COLOURS[(object - 1) % COLOURS.length];

const FILL = 0.4;
const LINE = 0.95;
const LINE_WIDTH = 1.5; // CSS pixels
const BITS = 8;

/**
 * The masks over the part of the canvas that the picture covers, in the canvas' own pixels.
 * @param {import("./masks.js").Masks} masks
 * @param {{left: number, top: number, width: number, height: number}} rect of the picture, in canvas pixels
 * @param {[number, number]} room size of the canvas
 * @param {number} density canvas pixels per CSS pixel
 * @returns {{image: ImageData, left: number, top: number} | null}
 */
export function tint(masks, rect, room, density) {
  const columns = sample(rect.left, rect.width, room[0], masks.width);
  const rows = sample(rect.top, rect.height, room[1], masks.height);
  if (!columns.indices.length || !rows.indices.length) return null;
  const image = new ImageData(columns.indices.length, rows.indices.length);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = masks.objects.map(({ object }) => colourOf(object));
  const [fills, lines] = [palette(colours, FILL), palette(colours, LINE)];
  const reach = Math.max(1, Math.round(LINE_WIDTH * density));
  paint(pixels, masks, columns.indices, rows.indices, reach, fills, lines);
  return { image, left: columns.first, top: rows.first };
}

function paint(pixels, { bits, width }, columns, rows, reach, fills, lines) {
  for (let y = 0, at = 0; y < rows.length; y++) {
    const row = rows[y] * width;
    const above = rows[Math.max(y - reach, 0)] * width;
    for (let x = 0; x < columns.length; x++, at++) {
      const here = bits[row + columns[x]];
      const up = bits[above + columns[x]];
      const left = bits[row + columns[Math.max(x - reach, 0)]];
      const changed = (here | up | left) ^ (here & up & left);
      pixels[at] = changed ? lines[changed] : fills[here];
    }
  }
}

/** Which pixel of the mask each pixel of the canvas shows, along one side. */
function sample(start, length, room, count) {
  const first = Math.max(Math.round(start), 0);
  const last = Math.min(Math.round(start + length), room);
  const indices = new Uint32Array(Math.max(last - first, 0));
  for (let index = 0; index < indices.length; index++) {
    const place = Math.floor(((first + index + 0.5 - start) / length) * count);
    indices[index] = Math.min(Math.max(place, 0), count - 1);
  }
  return { first, indices };
}

/** A colour for every combination of objects, as ImageData has it in a word. */
function palette(colours, alpha) {
  const words = new Uint32Array(1 << BITS);
  for (let set = 1; set < words.length; set++) {
    const own = colours.filter((_, index) => set & (1 << index)).map(channels);
    if (!own.length) continue;
    const [r, g, b] = [0, 1, 2].map((channel) => own.reduce((sum, colour) => sum + colour[channel], 0) / own.length);
    words[set] = ((Math.round(alpha * 255) << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
  }
  return words;
}

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/**
 * Middle of each object's mask, 0..1 over the picture, by object number.
 * @param {import("./masks.js").Masks} masks
 * @returns {Map<number, {x: number, y: number}>}
 */
export function middles({ bits, width, height, objects }) {
  const step = Math.max(1, Math.floor(Math.max(width, height) / 256));
  const found = new Map();
  objects.forEach(({ object }, index) => {
    let [count, sumX, sumY] = [0, 0, 0];
    for (let y = 0; y < height; y += step)
      for (let x = 0; x < width; x += step)
        if (bits[y * width + x] & (1 << index)) (count++, (sumX += x), (sumY += y));
    if (count) found.set(object, { x: (sumX / count + 0.5) / width, y: (sumY / count + 0.5) / height });
  });
  return found;
}
