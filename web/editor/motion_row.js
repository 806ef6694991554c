/** What the object does and how strongly: a short text with suggestions, and a slider. */

import { make } from "./dom.js";
import { fetchVerbs } from "./host.js";
import { say } from "./text.js";
import { colourOf } from "./tint.js";
import { MAX_MAGNITUDE } from "./values.js";

const STEP = 0.5;
/** Offered after the verbs that the loaded model was trained on. */
const MORE_VERBS = ["run", "walk", "jump", "fly", "dance", "wave", "nod", "spin", "shake", "flap the wings", "flow"];

/** @type {Promise<string[]> | null} asked once, when the first editor is used */
let verbs = null;
const allVerbs = () =>
  (verbs ??= fetchVerbs()
    .catch(() => ({ verbs: [] }))
    .then(({ verbs: trained }) => [...new Set([...trained, ...MORE_VERBS])]));

let lists = 0;

export class MotionRow {
  #model;
  #prompt = make("input", { type: "text", class: "followclick-prompt", autocomplete: "off", spellcheck: "false" });
  #slider = make("input", { type: "range", min: "0", max: `${MAX_MAGNITUDE}`, step: `${STEP}` });
  #number = make("output", { class: "followclick-magnitude", "aria-hidden": "true" });
  #list = make("datalist", { id: `followclick-verbs-${++lists}` });

  /** @param {import("./model.js").ClickModel} model */
  constructor(model) {
    this.#model = model;
    this.#slider.className = "followclick-slider";
    this.#prompt.setAttribute("list", this.#list.id);
    this.#prompt.placeholder = say("prompt_example");
    this.element = make("div", { class: "followclick-motion" }, this.#prompt, this.#slider, this.#number, this.#list);
    this.#listenTo(this.#prompt, () => ({ motion_prompt: this.#prompt.value }));
    this.#listenTo(this.#slider, () => ({ motion_magnitude: Number(this.#slider.value) }));
    this.#prompt.addEventListener("focus", () => this.#suggest(), { once: true });
  }

  /** @param {boolean} enabled */
  update(enabled) {
    const object = this.#model.active;
    const { motion_prompt, motion_magnitude } = this.#model.motionOf(object);
    const text = say("magnitude_text", { magnitude: motion_magnitude });
    if (this.#prompt.value !== motion_prompt) this.#prompt.value = motion_prompt;
    this.#slider.value = String(motion_magnitude);
    this.#number.value = say("magnitude_unit", { magnitude: motion_magnitude });
    this.#prompt.disabled = this.#slider.disabled = !enabled;
    this.#prompt.setAttribute("aria-label", say("prompt", { object }));
    this.#slider.setAttribute("aria-label", say("magnitude", { object }));
    this.#slider.setAttribute("aria-valuetext", text);
    this.#slider.title = text;
    this.element.style.setProperty("--followclick-colour", colourOf(object));
    this.element.style.setProperty("--followclick-share", `${(100 * motion_magnitude) / MAX_MAGNITUDE}%`);
  }

  /** All that is typed or dragged in one go is one step of the history. */
  #listenTo(field, read) {
    field.addEventListener("input", () => {
      this.#model.begin();
      this.#model.setMotion(this.#model.active, read());
    });
    field.addEventListener("change", () => this.#model.finish());
    field.addEventListener("blur", () => this.#model.finish());
  }

  async #suggest() {
    this.#list.replaceChildren(...(await allVerbs()).map((value) => make("option", { value })));
  }
}
