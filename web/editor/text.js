/** The words of the editor, in the language of the host. */

import { locale, translations } from "./host.js";

/** locales/<language>/main.json holds the same keys under "followclick"; a test compares them. */
export const ENGLISH = {
  canvas: "Click editor: {count} clicks. Tab walks them, arrows move, Enter adds one, Delete removes.",
  point_included: "Click {index} of {count}, object {object}, includes, at {x}, {y}",
  point_excluded: "Click {index} of {count}, object {object}, excludes, at {x}, {y}",
  crosshair: "Crosshair at {x}, {y}; Enter includes, Alt+Enter excludes",
  objects: "Objects",
  object: "Object {object}",
  add_object: "Another object",
  undo: "Undo (Ctrl+Z)",
  redo: "Redo (Ctrl+Shift+Z)",
  clear: "Remove all clicks",
  copy: "Copy this object's clicks as pixel JSON (Ctrl+C)",
  paste: "Paste pixel JSON as clicks (Ctrl+V)",
  large: "Open large (L)",
  close: "Back to the graph (Esc)",
  smaller: "Smaller mask (Shift+C)",
  larger: "Larger mask (C)",
  part: "part",
  whole: "whole",
  more: "more",
  mask_of: "mask {rank} of {count}",
  prompt: "What object {object} does",
  prompt_example: "what it does, e.g. run",
  magnitude: "How strongly object {object} moves",
  magnitude_text: "{magnitude} pixels per frame, at 512 pixels of width",
  magnitude_unit: "{magnitude} px",
  how: "Click selects, right click excludes, click on a point removes it.",
  no_picture: "Connect a picture to “image”.",
  not_known_yet: "The picture is known after “{through}” has run. Queue once, then click here.",
  not_known: "The picture is not known yet. Queue once, then click here.",
  stand_in: "The picture before “{through}”. After a run, the exact frame.",
  unreadable: "The stored clicks cannot be read ({reason}). They are kept until you click.",
  misfit: "The picture has other proportions: check where the clicks lie.",
  only_excluded: "Object {object} has only excluding clicks; add one on the object.",
  wired_points: "The wired points join these clicks when the graph runs.",
  wired_mask: "The wired mask joins when the graph runs; it is not in what is shown here.",
  wired_grow: "The wired “grow” counts when the graph runs; it is not in what is shown here.",
  not_loaded: "The picture cannot be loaded. Was the file moved or deleted?",
  no_server: "The server does not answer ({reason}). The clicks are kept.",
  waiting: "The mask follows when the queue is empty.",
  working: "Finding the object …",
  full: "64 clicks are the most.",
  copied: "Copied {count} points.",
  pasted: "Pasted {count} points.",
  nothing_to_copy: "Object {object} has no clicks to copy.",
  not_points: "No points in the clipboard; expected [{\"x\": 320, \"y\": 200}, …].",
  paste_by_key: "Press Ctrl+V to paste here.",
  elsewhere: "Click editor, large",
};

let words = ENGLISH;

/** Take over the host's language; English until then, and where a word is missing. */
export async function loadWords() {
  const language = locale();
  if (language.startsWith("en")) return;
  const all = await translations();
  words = { ...ENGLISH, ...(all[language] ?? all[language.split("-")[0]])?.followclick };
}

/**
 * @param {keyof typeof ENGLISH} key
 * @param {Record<string, string | number>} values for the names in braces
 */
export function say(key, values = {}) {
  return words[key].replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}
