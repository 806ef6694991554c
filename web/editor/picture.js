/** Loads the picture that a reference names, as Load Image would show it. */

import { viewUrl } from "./host.js";

const EXAMPLES = new URL("../examples/", import.meta.url);
const PROBE = 64;

/**
 * @param {import("./upstream.js").PictureRef} ref
 * @returns {Promise<HTMLImageElement>} decoded
 */
export async function loadPicture({ file, example }) {
  if (example) return decoded(new URL(`${encodeURIComponent(example)}.jpg`, EXAMPLES).href);
  const picture = await decoded(viewUrl(file));
  // Load Image drops transparency, as the mask editor's files have it where something was drawn. The browser would
  // show holes there, so the host is asked for the colours alone.
  if (/\.jpe?g$/i.test(file.filename) || !hasTransparency(picture)) return picture;
  return decoded(viewUrl(file, { preview: "webp;95", channel: "rgb" }));
}

/** @param {string} url */
async function decoded(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  return picture;
}

/** @param {HTMLImageElement} picture */
function hasTransparency(picture) {
  const canvas = new OffscreenCanvas(PROBE, PROBE);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, PROBE, PROBE);
  const { data } = context.getImageData(0, 0, PROBE, PROBE);
  for (let index = 3; index < data.length; index += 4) if (data[index] < 255) return true;
  return false;
}
