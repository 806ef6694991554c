/** What a motion prompt and a magnitude look like on the picture. */

export const CLIP_FRAMES = 16;
const UNIT_WIDTH = 512; // a magnitude counts pixels per frame at this width of picture

/** Words that say where it goes; others move in no one direction. */
const DIRECTIONS = [
  [/\b(left|leftwards?)\b/i, -1, 0],
  [/\b(right|rightwards?)\b/i, 1, 0],
  [/\b(up|upwards?|rise|rises|rising|launch\w*|lift\w*|take off|taking off|blast off)\b/i, 0, -1],
  [/\b(down|downwards?|fall\w*|drop\w*|sink\w*)\b/i, 0, 1],
];

/**
 * The way that an object goes, 0..1 over the picture's width in both axes, and whether it goes both ways.
 * @param {import("./values.js").Motion} motion
 */
export function way({ motion_prompt, motion_magnitude }) {
  const named = DIRECTIONS.find(([words]) => words.test(motion_prompt));
  const [, x, y] = named ?? [null, 1, 0];
  const step = motion_magnitude / UNIT_WIDTH;
  return { x: x * step * CLIP_FRAMES, y: y * step * CLIP_FRAMES, bothWays: !named };
}
