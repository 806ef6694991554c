"""A workflow as a list of nodes, and the two forms it is written in: the front end's and the API's."""

import re
from dataclasses import dataclass, field

COLUMN, GAP = 430, 40  # from one column to the next, from one node to the one below it

HF = "https://huggingface.co"
MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("Comfy-Org/stable-diffusion-v1-5-archive", "", "checkpoints"),
    "mm_sd15_v3.safetensors": ("conrevo/AnimateDiff-A1111", "motion_module/", "animatediff_models"),
    "pia.ckpt": ("Leoxing/PIA", "", "animatediff_models"),
    "control_v11p_sd15_openpose_fp16.safetensors": (
        "comfyanonymous/ControlNet-v1-1_fp16_safetensors",
        "",
        "controlnet",
    ),
}
# Heights of nodes that show a picture.
SIZES = {"FollowClick_ClickToMask": 660, "MaskPreview": 280, "PreviewImage": 280, "SaveVideo": 420, "LoadVideo": 320}


@dataclass
class Node:
    kind: str
    number: int
    inputs: dict
    title: str | None
    place: tuple[int, int]  # column, and how far down in it
    properties: dict

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """An output, to be given to another node."""
        return self.number, slot


@dataclass
class Workflow:
    name: str
    note: str
    infos: dict
    nodes: list[Node] = field(default_factory=list)
    bottoms: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.note = self.note.strip()
        shown = re.sub(r"\(https?:[^)]*\)", "", self.note)
        self.bottoms[0] = 110 + 14 * len(shown) // 45 + 14 * shown.count("\n") + GAP

    def add(self, kind: str, column: int, title: str | None = None, **inputs: object) -> Node:
        used = [name for name in inputs.values() if name in MODELS] if self._widgets(kind) else []
        models = [{"name": name, "url": _url(name), "directory": MODELS[name][2]} for name in used]
        properties = {"Node name for S&R": kind} | ({"models": models} if models else {})
        if kind == "OpenposePreprocessor":
            properties["cnr_id"] = "comfyui_controlnet_aux"
        top = self.bottoms.get(column, 0)
        node = Node(kind, len(self.nodes) + 2, inputs, title, (COLUMN * column, top), properties)
        self.bottoms[column] = top + self.height(kind) + 30 + GAP
        self.nodes.append(node)
        return node

    def declared(self, kind: str) -> list[tuple[str, list, bool]]:
        """Each input: its name, what is declared of it, whether it is optional."""
        inputs = self.infos[kind]["input"]
        return [(n, d, False) for n, d in inputs.get("required", {}).items()] + [
            (n, d, True) for n, d in inputs.get("optional", {}).items()
        ]

    def _widgets(self, kind: str) -> list[tuple[str, list, bool]]:
        return [each for each in self.declared(kind) if is_widget(each[1])]

    def height(self, kind: str) -> int:
        sockets = len(self.declared(kind)) - len(self._widgets(kind))
        slots = max(sockets, len(self.infos[kind]["output"]))
        texts = sum(bool(declared[1].get("multiline")) for _, declared, _ in self._widgets(kind) if len(declared) > 1)
        return SIZES.get(kind, 20 * slots + 26 * len(self._widgets(kind)) + 60 * texts + 20)

    def api(self) -> dict:
        graph = {}
        for node in self.nodes:
            inputs = {name: self.value(node, name, declared) for name, declared, _ in self._widgets(node.kind)}
            links = {name: [str(v[0]), v[1]] for name, v in node.inputs.items() if isinstance(v, tuple)}
            title = node.title or self.infos[node.kind].get("display_name") or node.kind
            entry = {"inputs": inputs | links, "class_type": node.kind, "_meta": {"title": title}}
            graph[str(node.number)] = entry
        return graph

    def value(self, node: Node, name: str, declared: list) -> object:
        given = node.inputs.get(name)
        if given is not None and not isinstance(given, tuple):
            return given
        options = declared[1] if len(declared) > 1 else {}
        choices = declared[0] if isinstance(declared[0], list) else options.get("options")
        return options.get("default", choices[0] if choices else "")

    def opened(self) -> dict:
        """The form that the front end opens and saves."""
        links, outgoing = [], {}
        for node in self.nodes:
            for slot, (name, declared, _) in enumerate(self._slots(node.kind)):
                if isinstance(source := node.inputs.get(name), tuple):
                    kind = "COMBO" if isinstance(declared[0], list) else declared[0]
                    links.append([len(links) + 1, *source, node.number, slot, kind])
                    outgoing.setdefault(tuple(source), []).append(len(links))
        incoming = {(link[3], link[4]): link[0] for link in links}
        return {
            "revision": 0,
            "last_node_id": len(self.nodes) + 1,
            "last_link_id": len(links),
            "nodes": [self._note(), *(self._node(node, incoming, outgoing) for node in self.nodes)],
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 80]}},
            "version": 0.4,
        }

    def _slots(self, kind: str) -> list[tuple[str, list, bool]]:
        """The front end lists sockets first."""
        return sorted(self.declared(kind), key=lambda each: is_widget(each[1]))

    def _note(self) -> dict:
        return {
            "id": 1,
            "type": "MarkdownNote",
            "pos": [0, 0],
            "size": [380, self.bottoms[0] - GAP - 30 if not self.nodes else self._note_height()],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "Start here",
            "properties": {},
            "widgets_values": [self.note],
            "color": "#432",
            "bgcolor": "#653",
        }

    def _note_height(self) -> int:
        return min(node.place[1] for node in self.nodes if node.place[0] == 0) - GAP - 30

    def _node(self, node: Node, incoming: dict, outgoing: dict) -> dict:
        inputs, values = [], []
        for slot, (name, declared, optional) in enumerate(self._slots(node.kind)):
            kind = "COMBO" if isinstance(declared[0], list) else declared[0]
            entry = {"localized_name": name, "name": name} | ({"shape": 7} if optional else {}) | {"type": kind}
            if is_widget(declared):
                entry["widget"] = {"name": name}
                values.append(self.value(node, name, declared))
                if name in ("seed", "noise_seed"):
                    values.append("fixed")
            inputs.append(entry | {"link": incoming.get((node.number, slot))})
        info = self.infos[node.kind]
        outputs = [
            {"localized_name": name, "name": name, "type": kind, "links": outgoing.get((node.number, slot))}
            for slot, (name, kind) in enumerate(zip(info["output_name"], info["output"], strict=True))
        ]
        return {
            "id": node.number,
            "type": node.kind,
            "pos": list(node.place),
            "size": [380, self.height(node.kind)],
            "flags": {},
            "order": node.number - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            **({"title": node.title} if node.title else {}),
            "properties": node.properties,
            **({"widgets_values": values} if values else {}),
        }


def is_widget(declared: list) -> bool:
    options = declared[1] if len(declared) > 1 else {}
    own = isinstance(declared[0], list) or declared[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return (own or declared[0] == "FOLLOWCLICK_CLICKS") and not options.get("forceInput")


def downloads(*names: str) -> str:
    """Markdown that names each file, where it comes from and where it goes."""
    return "\n".join(f"- [{name}]({_url(name)}) → `models/{MODELS[name][2]}`" for name in names)


def _url(name: str) -> str:
    repository, folder, _ = MODELS[name]
    return f"{HF}/{repository}/resolve/main/{folder}{name}"
