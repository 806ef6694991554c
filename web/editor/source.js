/** The picture that the node's clicks lie on: what is upstream, or the exact frame once the node has run. */

import { inputIndex, inputLink, outputsOf } from "./host.js";
import { loadPicture } from "./picture.js";
import { say } from "./text.js";
import { findPicture } from "./upstream.js";

const INPUT = "image";

export class Source {
  /** @type {HTMLImageElement | null} */
  picture = null;
  /** @type {import("./upstream.js").PictureRef | null} of the picture that is shown or being loaded */
  ref = null;
  /** False while the picture is only close to what the node will receive, as "through" has yet to run. */
  exact = true;
  through = "";
  problem = "";
  hint = say("no_picture");
  #node;
  #onChange;
  #upstream = "";
  /** The last run's frame and what was upstream then: the host keeps the frame, but not what it belongs to. */
  #made = { frame: "", upstream: "" };
  #shown = "";

  /**
   * @param {object} node
   * @param {() => void} onChange
   */
  constructor(node, onChange) {
    this.#node = node;
    this.#onChange = onChange;
  }

  /** The route's name for the picture, or null if none is shown. */
  get image() {
    if (!this.picture || !this.ref) return null;
    return this.ref.file ?? { example: this.ref.example };
  }

  refresh() {
    const link = inputLink(this.#node, inputIndex(this.#node, INPUT));
    const wired = link !== null;
    const found = wired ? findPicture(this.#node, INPUT) : null;
    this.#upstream = JSON.stringify(found?.exact ? [found.ref] : [found?.ref, found?.passed, link?.origin_id]);
    const frame = wired ? this.#frame() : null;
    const ref = frame ? { file: frame } : (found?.ref ?? null);
    const [exact, through] = [Boolean(frame) || (found?.exact ?? true), found?.through ?? ""];
    const key = JSON.stringify([ref, exact, through, wired]);
    if (key === this.#shown) return;
    this.#shown = key;
    Object.assign(this, { exact, through });
    this.hint = wired ? this.#notKnown(link) : say("no_picture");
    this.#show(ref);
  }

  /** @param {import("./upstream.js").FileRef | undefined} frame that a run left */
  ran(frame) {
    if (!frame) return;
    this.refresh();
    this.#made = { frame: frame.filename, upstream: this.#upstream };
  }

  forget() {
    this.#shown = "";
    this.ref = this.picture = null;
  }

  /** The last run's frame, if it is of what is upstream now. */
  #frame() {
    const frame = outputsOf(this.#node)?.followclick_frame?.[0];
    const { frame: made, upstream } = this.#made;
    return frame && frame.filename === made && upstream === this.#upstream ? frame : null;
  }

  async #show(ref) {
    const unchanged = JSON.stringify(ref) === JSON.stringify(this.ref);
    this.ref = ref;
    if (unchanged && this.picture) return this.#onChange();
    this.problem = "";
    if (!ref) this.picture = null;
    try {
      const picture = ref && (await loadPicture(ref));
      if (this.ref !== ref) return undefined; // another came meanwhile
      this.picture = picture;
    } catch {
      if (this.ref !== ref) return undefined;
      this.picture = null;
      this.problem = this.hint = say("not_loaded");
    }
    return this.#onChange();
  }

  #notKnown(link) {
    const node = this.#node.graph.getNodeById(link.origin_id);
    return node ? say("not_known_yet", { through: node.title || node.type }) : say("not_known");
  }
}
