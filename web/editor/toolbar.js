/** The rows of buttons above and below the picture: objects, history, and the choice among masks. */

import { iconButton, make } from "./dom.js";
import { ownsUndo } from "./host.js";
import { say } from "./text.js";
import { colourOf } from "./tint.js";
import { MAX_OBJECTS } from "./values.js";

/**
 * @typedef {object} Actions
 * @property {() => void} copy
 * @property {() => void} paste
 * @property {() => void} toggleLarge
 * @property {(step: 1 | -1) => void} step to the next larger or smaller mask
 */

export class Toolbar {
  #model;
  #chips = make("div", { class: "followclick-chips", role: "radiogroup", "aria-label": say("objects") });
  #buttons;
  #large;

  /**
   * @param {import("./model.js").ClickModel} model
   * @param {Actions} actions
   */
  constructor(model, actions) {
    this.#model = model;
    this.#large = iconButton("large", say("large"), actions.toggleLarge);
    this.#buttons = {
      undo: iconButton("undo", say("undo"), () => model.undo()),
      redo: iconButton("redo", say("redo"), () => model.redo()),
      clear: iconButton("clear", say("clear"), () => model.clear()),
      copy: iconButton("copy", say("copy"), actions.copy),
      paste: iconButton("paste", say("paste"), actions.paste),
    };
    const tools = make("div", { class: "followclick-tools" }, ...Object.values(this.#buttons), this.#large);
    this.element = make("div", { class: "followclick-toolbar", role: "toolbar" }, this.#chips, tools);
    keepFocus(this.element);
    tools.querySelectorAll("button").forEach(ownsUndo);
  }

  /** @param {boolean} hasPicture */
  update(hasPicture) {
    const { undo, redo, clear, copy, paste } = this.#buttons;
    undo.disabled = !this.#model.canUndo;
    redo.disabled = !this.#model.canRedo;
    clear.disabled = !this.#model.clicks.length && !this.#model.problem;
    copy.disabled = !hasPicture || !this.#model.clicksOf(this.#model.active).length;
    paste.disabled = this.#large.disabled = !hasPicture;
    this.#updateChips();
  }

  /** @param {boolean} open */
  showLarge(open) {
    const button = iconButton(open ? "close" : "large", say(open ? "close" : "large"), () => {});
    this.#large.replaceChildren(...button.childNodes);
    this.#large.title = button.title;
    this.#large.setAttribute("aria-label", button.title);
  }

  #updateChips() {
    const { objects, active } = this.#model;
    const shown = objects.map((object) => {
      const { motion_prompt } = this.#model.motionOf(object);
      return [object, object === active, motion_prompt].join("|");
    });
    const state = `${shown.join()} ${objects.length < MAX_OBJECTS}`;
    if (this.#chips.dataset.state === state) return; // buttons that are replaced would lose the focus
    const focused = this.#chips.contains(document.activeElement) && document.activeElement.dataset.object;
    this.#chips.dataset.state = state;
    this.#chips.replaceChildren(...objects.map((object) => this.#chip(object, object === active)));
    if (objects.length < MAX_OBJECTS) this.#chips.append(this.#addButton(objects.length + 1));
    if (focused) this.#chips.querySelector(`[data-object="${active}"]`)?.focus();
  }

  #chip(object, active) {
    const { motion_prompt } = this.#model.motionOf(object);
    const name = say("object", { object }) + (motion_prompt ? `: ${motion_prompt}` : "");
    const chip = make("button", { class: "followclick-chip", role: "radio", title: name, "aria-label": name }, `${object}`);
    chip.dataset.object = String(object);
    chip.setAttribute("aria-checked", String(active));
    chip.style.setProperty("--followclick-colour", colourOf(object));
    chip.addEventListener("click", () => this.#model.activate(object));
    ownsUndo(chip);
    return chip;
  }

  #addButton(object) {
    const button = iconButton("add", say("add_object"), () => this.#model.activate(object));
    button.dataset.object = "add";
    ownsUndo(button);
    return button;
  }
}

/** "◂ whole ▸": which of the masks that a click can mean. */
export class Stepper {
  #name = make("output", { class: "followclick-candidate" });

  /** @param {Actions} actions */
  constructor(actions) {
    const smaller = iconButton("smaller", say("smaller"), () => actions.step(-1));
    const larger = iconButton("larger", say("larger"), () => actions.step(1));
    this.element = make("div", { class: "followclick-stepper" }, smaller, this.#name, larger);
    this.element.hidden = true;
    keepFocus(this.element);
    [smaller, larger].forEach(ownsUndo);
  }

  /** @param {import("./masks.js").MaskInfo | undefined} info of the object that is worked on */
  update(info) {
    this.element.hidden = !(info?.candidates > 1);
    if (this.element.hidden) return;
    const rank = bySize(info).indexOf(info.candidate);
    const names = [say("part"), say("whole"), say("more")];
    const known = info.areas && info.candidates === names.length;
    this.#name.value = known ? names[rank] : say("mask_of", { rank: rank + 1, count: info.candidates });
  }
}

/**
 * The candidates from the smallest to the largest, or as they come where their sizes are not known.
 * @param {import("./masks.js").MaskInfo} info
 * @returns {number[]}
 */
export function bySize({ candidates, areas }) {
  const all = Array.from({ length: candidates }, (_, index) => index);
  return areas ? all.sort((a, b) => areas[a] - areas[b]) : all;
}

/** A mouse on a button leaves the keyboard where it was, on the picture. */
function keepFocus(element) {
  element.addEventListener("mousedown", (event) => event.preventDefault());
}
