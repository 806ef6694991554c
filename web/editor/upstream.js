/**
 * Which picture a node will receive, found in the graph as it stands: before any run, through reroutes, subgraphs and
 * bypassed nodes.
 */

import { inputIndex, inputLink, outputsOf, rootGraph } from "./host.js";

/**
 * @typedef {{filename: string, subfolder?: string, type?: string}} FileRef
 * @typedef {{file?: FileRef, example?: string}} PictureRef what the routes take
 * @typedef {{ref: PictureRef, exact: boolean, through: string, passed: string}} Found `exact` is false if a node in
 *   between, named by `through`, has yet to run and may change the picture; `passed` tells the settings of such nodes
 */

const BYPASSED = 4;
const MUTED = 2;
const SUBGRAPH_INPUT = -10;
const PREVIEWS = new Set(["PreviewImage", "SaveImage"]);
const MAX_STEPS = 200; // a graph may have a loop

/**
 * The picture at an input, or null if none is known.
 * @returns {Found | null}
 */
export function findPicture(node, inputName) {
  const walk = new Walk();
  return walk.from(node, inputName) ? walk.picture() : null;
}

/**
 * The file that a drawn mask comes from, as Load Image reads it, or null.
 * @returns {FileRef | null}
 */
export function findDrawnMask(node, inputName) {
  const walk = new Walk();
  if (!walk.from(node, inputName) || walk.source.comfyClass !== "LoadImage") return null;
  return uploadedFile(walk.source);
}

/** The segmenter that is wired, by name; others than a loader's are the embedded one. */
export function findSegmenter(node) {
  const walk = new Walk();
  if (!walk.from(node, "segmenter") || walk.source.comfyClass !== "FollowClick_LoadSegmenter") return "demo";
  return String(widgetValue(walk.source, "name") ?? "demo");
}

/** Where an input's value comes from: the node that makes it, with all that only passes it on walked through. */
class Walk {
  source = null;
  slot = 0;
  exact = true;
  through = "";
  #passed = []; // the settings of the nodes that have yet to run
  #instances = []; // subgraph nodes that were entered from the outside
  #steps = 0;

  /** Follow an input by its name; false if nothing is wired to it. */
  from(node, inputName) {
    return this.#follow(node, inputIndex(node, inputName));
  }

  /** @returns {Found | null} */
  picture() {
    for (let ref; this.source; ) {
      if ((ref = pictureOf(this.source) ?? previewOf(this.source, this.slot))) {
        return { ref, exact: this.exact, through: this.through, passed: JSON.stringify(this.#passed) };
      }
      // A node that has yet to run: what goes into it is close to what comes out, if only one picture goes in.
      const node = this.source;
      const images = [...(node.inputs ?? []).keys()].filter(
        (index) => node.inputs[index].type === "IMAGE" && inputLink(node, index),
      );
      if (images.length !== 1) return null;
      this.exact = false;
      this.#passed.push(settingsOf(node));
      this.through ||= node.title || node.type;
      if (!this.#follow(node, images[0])) return null;
    }
    return null;
  }

  #follow(node, index) {
    this.source = null;
    if (++this.#steps > MAX_STEPS) return false;
    const link = inputLink(node, index);
    return link ? this.#arrive(node.graph, link) : false;
  }

  /** At the output that a link starts from: stop there, or go on where it only passes something on. */
  #arrive(graph, link) {
    if (Number(link.origin_id) === SUBGRAPH_INPUT) return this.#leave(graph, link.origin_slot);
    const node = graph.getNodeById(link.origin_id);
    if (!node || node.mode === MUTED) return false;
    if (node.mode === BYPASSED) return this.#bypass(node, link.origin_slot);
    if (node.subgraph) return this.#enter(node, link.origin_slot);
    if (node.isVirtualNode) return this.#passThrough(node, link.origin_slot);
    this.source = node;
    this.slot = link.origin_slot;
    return true;
  }

  #enter(node, slot) {
    const inner = node.subgraph.getLink(node.subgraph.outputs[slot]?.linkIds?.[0]);
    if (!inner || ++this.#steps > MAX_STEPS) return false;
    this.#instances.push(node);
    return this.#arrive(node.subgraph, inner);
  }

  #leave(graph, slot) {
    const instance = this.#instances.pop() ?? instanceOf(graph);
    return instance ? this.#follow(instance, slot) : false;
  }

  /** As the host does: the input of the same place if it has the same type, else the first that has. */
  #bypass(node, slot) {
    const type = node.outputs[slot]?.type;
    const fits = (input) => input && input.type === type;
    const index = fits(node.inputs?.[slot]) ? slot : (node.inputs?.findIndex(fits) ?? -1);
    return index >= 0 && this.#follow(node, index);
  }

  #passThrough(node, slot) {
    const link = node.getInputLink?.(slot);
    if (link && ++this.#steps <= MAX_STEPS) return this.#arrive(node.graph, link);
    return node.inputs?.length ? this.#follow(node, 0) : false;
  }
}

/** @returns {PictureRef | null} */
function pictureOf(node) {
  if (node.comfyClass === "FollowClick_ExamplePhoto") return { example: String(widgetValue(node, "picture")) };
  return asRef(uploadedFile(node) ?? outputsOf(node)?.images?.[0]);
}

/** What a preview that is wired to the same output has shown. */
function previewOf(node, slot) {
  const previews = (node.getOutputNodes?.(slot) ?? []).filter(({ comfyClass }) => PREVIEWS.has(comfyClass));
  return previews.map((preview) => asRef(outputsOf(preview)?.images?.[0])).find(Boolean) ?? null;
}

const asRef = (file) =>
  file?.filename ? { file: { filename: file.filename, subfolder: file.subfolder ?? "", type: file.type } } : null;

/** The file in the widget of Load Image and its like, "folder/name.png [input]"; the host's preview lags behind it. */
function uploadedFile(node) {
  const declared = { ...node.constructor.nodeData?.input?.required, ...node.constructor.nodeData?.input?.optional };
  const name = Object.keys(declared).find((key) => declared[key]?.[1]?.image_upload);
  const wired = name && inputLink(node, inputIndex(node, name));
  const value = name && !wired ? [widgetValue(node, name)].flat()[0] : null;
  if (typeof value !== "string" || !value) return null;
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(value);
  const slash = path.lastIndexOf("/");
  return { filename: path.slice(slash + 1), subfolder: path.slice(0, Math.max(slash, 0)), type: type ?? "input" };
}

const widgetValue = (node, name) => node.widgets?.find((widget) => widget.name === name)?.value;

const valuesOf = (node) => node?.widgets?.map(({ name, value }) => [name, plain(value)]) ?? [];

/** What decides how a node changes a picture: its widgets, and what is wired to it, with the widgets of that. */
function settingsOf(node) {
  const links = [...(node.inputs ?? []).keys()].map((index) => {
    const link = inputLink(node, index);
    return link && [link.origin_id, link.origin_slot, valuesOf(node.graph.getNodeById(link.origin_id))];
  });
  return [node.id, node.type, valuesOf(node), links];
}

/** A widget may hold anything, also what cannot be written as JSON. */
function plain(value) {
  try {
    return JSON.stringify(value) ?? "";
  } catch {
    return String(value);
  }
}

/** A node that stands for this subgraph, wherever it is. */
function instanceOf(graph, within = rootGraph(), seen = new Set()) {
  if (!within || seen.has(within)) return null;
  seen.add(within);
  const nodes = (within.nodes ?? within._nodes ?? []).filter((node) => node.subgraph);
  const found = nodes.find((node) => node.subgraph === graph);
  return found ?? nodes.map((node) => instanceOf(graph, node.subgraph, seen)).find(Boolean) ?? null;
}
