/** Shows an element in a window-filling dialog, and puts it back. */

import { make } from "./dom.js";

export class LargeWindow {
  /** @type {HTMLDialogElement | null} */
  #dialog = null;
  #content;
  #onToggle;

  /**
   * @param {HTMLElement} content
   * @param {() => void} onToggle
   */
  constructor(content, onToggle) {
    this.#content = content;
    this.#onToggle = onToggle;
  }

  get open() {
    return this.#dialog !== null;
  }

  /** @param {string} label */
  show(label) {
    if (this.#dialog) return;
    const home = this.#content.parentElement;
    const dialog = make("dialog", { class: "followclick-large", "aria-label": label }, this.#content);
    this.#dialog = dialog;
    dialog.addEventListener("close", () => this.#putBack(home));
    // The keys of the graph behind would act on it unseen.
    for (const type of ["keydown", "keyup", "copy", "cut", "paste"]) {
      dialog.addEventListener(type, (event) => event.stopPropagation());
    }
    document.body.append(dialog);
    dialog.showModal();
    this.#onToggle();
  }

  close() {
    this.#dialog?.close();
  }

  #putBack(home) {
    const dialog = this.#dialog;
    this.#dialog = null;
    home.append(this.#content);
    dialog.remove();
    this.#onToggle();
  }
}
