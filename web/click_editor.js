/** The click editor: a widget for FOLLOWCLICK_CLICKS, the clicks of Click to Mask and Animate Region. */

import { ClickEditor } from "./editor/editor.js";
import { app } from "./editor/host.js";
import { loadWords } from "./editor/text.js";

const TYPE = "FOLLOWCLICK_CLICKS";
const MIN_WIDTH = 330;
const STAGE_HEIGHT = 220;
const ROW_HEIGHT = 30;

/** Run ours after whatever others have put there. */
function chain(node, name, ours) {
  const before = node[name];
  node[name] = function (...args) {
    const result = before?.apply(this, args);
    ours(...args);
    return result;
  };
}

function clicksWidget(node, inputName, inputData) {
  const { motion = false } = inputData[1] ?? {};
  const editor = new ClickEditor(node, inputName, { motion });
  const minHeight = STAGE_HEIGHT + (motion ? 3 : 2) * ROW_HEIGHT;
  const widget = node.addDOMWidget(inputName, TYPE, editor.element, {
    getValue: () => editor.model.text,
    setValue: (text) => editor.model.load(String(text ?? "[]")),
    getMinHeight: () => minHeight,
    hideOnZoom: false,
    socketless: true,
  });
  chain(node, "onAdded", () => editor.attach());
  chain(node, "onRemoved", () => editor.detach());
  chain(node, "onConnectionsChange", () => {
    editor.refresh();
    editor.refreshSoon();
  });
  chain(node, "onExecuted", (output) => editor.ran(output));
  return { widget, minWidth: MIN_WIDTH, minHeight };
}

app.registerExtension({
  name: "FollowClick.ClickEditor",
  async init() {
    const href = new URL("./editor/style.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
    await loadWords();
  },
  getCustomWidgets: () => ({ [TYPE]: clicksWidget }),
});
