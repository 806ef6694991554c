/** Small helpers that make elements. */

const SVG = "http://www.w3.org/2000/svg";

/** Strokes on a grid of 16. */
const ICONS = {
  add: "M8 3v10M3 8h10",
  undo: "M6 3 2.5 6.5 6 10M3 6.5h6.5a3.5 3.5 0 0 1 0 7H6",
  redo: "M10 3l3.5 3.5L10 10M13 6.5H6.5a3.5 3.5 0 0 0 0 7H10",
  clear: "M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.7 9h5.6l.7-9M7 7v4M9 7v4",
  copy: "M6 6h7.5v7.5H6zM3.5 10H2.5V2.5H10v1",
  paste: "M5.5 3h-2v10.5h9V3h-2M5.5 2h5v2.5h-5zM6 8h4M6 10.5h4",
  large: "M9.5 2.5h4v4M13.5 2.5 9 7M6.5 13.5h-4v-4M2.5 13.5 7 9",
  close: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  smaller: "M10 3 5 8l5 5",
  larger: "M6 3l5 5-5 5",
};

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** @param {keyof typeof ICONS} name */
export function icon(name) {
  const [svg, path] = [document.createElementNS(SVG, "svg"), document.createElementNS(SVG, "path")];
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with a picture on it, named for those who cannot see it.
 * @param {keyof typeof ICONS} name
 * @param {string} label
 * @param {() => void} onPress
 */
export function iconButton(name, label, onPress) {
  const button = make("button", { class: "followclick-button", "aria-label": label, title: label }, icon(name));
  button.addEventListener("click", onPress);
  return button;
}
