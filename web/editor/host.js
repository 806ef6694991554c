/** The only file that touches the host's front end; it serves both of its renderers. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

export { app };

/** Whether nodes are drawn as HTML (Nodes 2.0) and not on the canvas. */
export const isVueRenderer = () => Boolean(globalThis.LiteGraph?.vueNodesMode);

export const rootGraph = () => app.rootGraph ?? app.graph;

/** Whether the node is part of what is open; nodes within subgraphs are not told when another workflow is. */
export function isOpen(node) {
  const [graph, root] = [node.graph, rootGraph()];
  const known = graph && (graph === root || root.subgraphs?.get(graph.id) === graph);
  return Boolean(known && graph.getNodeById(node.id) === node);
}

/** Whether the node is in the graph that one looks at, the root or a subgraph. */
export const isShown = (node) => isOpen(node) && node.graph === app.canvas?.graph;

export const locale = () => app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";

export const graphZoom = () => app.canvas?.ds?.scale ?? 1;

/** @returns {string} where a picture or a mask of the host's folders can be had */
export function viewUrl({ filename, subfolder = "", type = "input" }, options = {}) {
  // A file may be written again under its name; the browser's cache would show the old one.
  const query = new URLSearchParams({ filename, subfolder, type, ...options, changed: String(Date.now()) });
  return api.apiURL(`/view?${query}`);
}

export function translations() {
  return api.fetchApi("/i18n").then((answer) => answer.json());
}

export function fetchVerbs() {
  return api.fetchApi("/followclick/verbs").then((answer) => (answer.ok ? answer.json() : { verbs: [] }));
}

/** @param {object} request @param {AbortSignal} signal */
export function postSegment(request, signal) {
  return api.fetchApi("/followclick/segment", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
}

/**
 * The link at a node's input, or null. Subgraph nodes and others give this method another meaning, hence the first one.
 * @returns {{origin_id: string | number, origin_slot: number} | null}
 */
export function inputLink(node, index) {
  return node.graph && index >= 0 ? globalThis.LiteGraph.LGraphNode.prototype.getInputLink.call(node, index) : null;
}

export const inputIndex = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

/** What a node showed when it ran, or shows without having run as Load Image does. */
export function outputsOf(node) {
  const graph = node.graph;
  const inRoot = !graph || graph === rootGraph();
  return app.nodeOutputs?.[inRoot ? String(node.id) : `${graph.id}:${node.id}`];
}

/** Tell the host that a step of the graph's history is complete. */
export function recordChange() {
  app.canvas?.emitBeforeChange?.();
  app.canvas?.emitAfterChange?.();
}

/** The host's undo leaves alone what has a history of its own, and knows that by the one or the other, as old or new. */
export function ownsUndo(element) {
  Object.defineProperty(element, "type", { value: "textarea" });
  Object.defineProperty(element, "isContentEditable", { value: true });
}

/** In the classic renderer a widget's element takes these from the graph; Nodes 2.0 passes them on itself. */
export function forwardToGraph(event) {
  if (isVueRenderer()) return;
  if (event.type === "wheel") {
    event.preventDefault();
    app.canvas.processMouseWheel(event);
  } else if (event.type === "pointerdown") app.canvas.processMouseDown(event);
  else if (event.type === "pointermove") app.canvas.processMouseMove(event);
  else app.canvas.processMouseUp(event);
}

/** @type {Set<() => void>} */
const drawListeners = new Set();
/** @type {{canvas: object, before: Function | undefined, ours: Function} | null} */
let drawHook = null;

/**
 * Call `listener` whenever the host draws the graph. It does so when something changed, and only then: the one sign
 * that a link, a widget or an output anywhere upstream is another.
 * @param {() => void} listener
 * @returns {() => void} stops it
 */
export function onGraphDrawn(listener) {
  drawListeners.add(listener);
  if (!drawHook && app.canvas) {
    const before = app.canvas.onDrawForeground;
    const ours = function (...args) {
      before?.apply(this, args);
      for (const each of drawListeners) each();
    };
    drawHook = { canvas: app.canvas, before, ours };
    app.canvas.onDrawForeground = ours;
  }
  return () => {
    drawListeners.delete(listener);
    if (drawListeners.size || !drawHook) return;
    // Others may have chained theirs after ours, which then stays and does nothing.
    if (drawHook.canvas.onDrawForeground !== drawHook.ours) return;
    drawHook.canvas.onDrawForeground = drawHook.before;
    drawHook = null;
  };
}

/**
 * Call `listener` with the number of prompts that are queued or run, whenever it changes.
 * @param {(remaining: number) => void} listener
 * @returns {() => void} stops it
 */
export function onQueue(listener) {
  const onStatus = ({ detail }) => {
    const remaining = detail?.exec_info?.queue_remaining;
    if (Number.isInteger(remaining)) listener(remaining);
  };
  api.addEventListener("status", onStatus);
  return () => api.removeEventListener("status", onStatus);
}

/**
 * Call `listener` when the page comes to a screen with other pixels, or is zoomed by the browser.
 * @param {() => void} listener
 * @returns {() => void} stops it
 */
export function onDensityChange(listener) {
  let query = null;
  const watch = () => {
    query = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    query.addEventListener("change", onChange, { once: true });
  };
  const onChange = () => {
    watch();
    listener();
  };
  watch();
  return () => query.removeEventListener("change", onChange);
}
