/** Clicks to and from the clipboard, as the pixel JSON that other packs' point editors use. */

import { say } from "./text.js";
import { formatPixels, normalised, parseValue } from "./values.js";

/**
 * The clicks of the active object as text, and what to say about it.
 * @param {import("./model.js").ClickModel} model
 * @param {import("./values.js").Size} size of the picture
 */
export function copied(model, size) {
  const clicks = model.clicksOf(model.active);
  if (!clicks.length) return { text: null, message: say("nothing_to_copy", { object: model.active }) };
  return { text: formatPixels(clicks, size), message: say("copied", { count: clicks.length }) };
}

/**
 * Add the clicks in a text to the active object, and say what was done.
 * @param {import("./model.js").ClickModel} model
 * @param {import("./values.js").Size} size
 * @param {string} text
 */
export function paste(model, size, text) {
  let clicks = [];
  try {
    const parsed = parseValue(text);
    clicks = parsed.inPixels ? normalised(parsed.clicks, size) : parsed.clicks;
  } catch {
    // What it is instead is of no interest: anything may lie in a clipboard.
  }
  const count = model.addAll(clicks.map(({ x, y, label }) => ({ x, y, label })));
  return count ? say("pasted", { count }) : say("not_points");
}
