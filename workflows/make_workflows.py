"""Writes the example workflows, in the form that the front end opens and in the API's, from the lists below.

    python workflows/make_workflows.py [http://127.0.0.1:8188]

The server tells the nodes' inputs and their order, so run it again when a node gets a new one. `click_to_animate` and
`animate_region_simple` were arranged by hand and are not written here.
"""

import json
import sys
import urllib.request
from pathlib import Path

from workflow_writer import Node, Workflow, downloads

HERE = Path(__file__).parent
# A node of comfyui_controlnet_aux, which need not be there to write the graph: its inputs as that pack declares them.
OPENPOSE = {
    "input": {
        "required": {"image": ["IMAGE", {}]},
        "optional": {
            "detect_hand": [["enable", "disable"], {}],
            "detect_body": [["enable", "disable"], {}],
            "detect_face": [["enable", "disable"], {}],
            "resolution": ["INT", {}],
        },
    },
    "output": ["IMAGE"],
    "output_name": ["IMAGE"],
}
ROCKET = {"x": 0.5023, "y": 0.5398, "label": 1, "object": 1}
SAUCER = {"x": 0.24, "y": 0.42, "label": 1, "object": 1}
SECOND_ROCKET = {"x": 0.735, "y": 0.63, "label": 1, "object": 2}


def clicks(*points: dict, size: tuple[int, int] = (640, 427), **motions: tuple[str, float]) -> str:
    """What the click editor keeps; the motions are named object_1, object_2 and so on."""
    said = {
        key.removeprefix("object_"): {"motion_prompt": prompt, "motion_magnitude": magnitude}
        for key, (prompt, magnitude) in motions.items()
    }
    return json.dumps({"image_size": list(size), "clicks": list(points)} | ({"objects": said} if said else {}))


def end(flow: Workflow, column: int, frames: tuple[int, int]) -> None:
    video = flow.add("CreateVideo", column, images=frames, fps=8.0)
    flow.add("SaveVideo", column, video=video[0], filename_prefix="FollowClick/clip")


def sample(
    flow: Workflow, column: int, model: tuple, conditions: tuple, latent: tuple, vae: tuple, cfg: float = 7.5
) -> Node:
    sampler = flow.add(
        "KSampler",
        column,
        model=model,
        positive=conditions[0],
        negative=conditions[1],
        latent_image=latent,
        seed=1,
        steps=25,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    return flow.add("VAEDecode", column, samples=sampler[0], vae=vae)


def texts(flow: Workflow, column: int, clip: tuple, positive: object) -> tuple[Node, Node]:
    return (
        flow.add("CLIPTextEncode", column, "Positive", clip=clip, text=positive),
        flow.add("CLIPTextEncode", column, "Negative: may stay empty", clip=clip, text=""),
    )


def two_objects(infos: dict) -> Workflow:
    flow = Workflow("two_objects", NOTES["two_objects"], infos)
    photo = flow.add("FollowClick_ExamplePhoto", 0, picture="saucer_and_rocket")
    demo = flow.add("FollowClick_LoadDemoModel", 0)
    motions = {"object_1": ("move right", 5), "object_2": ("launch", 5)}
    where = flow.add(
        "FollowClick_ClickToMask",
        1,
        image=photo[0],
        segmenter=demo[4],
        clicks=clicks(SAUCER, SECOND_ROCKET, size=(384, 256), **motions),
        grow=2,
    )
    flow.add("MaskPreview", 1, mask=where[0])
    positive, negative = texts(flow, 2, demo[1], where[5])
    region = flow.add("FollowClick_MotionRegion", 2, clip=demo[1], objects=where[2])
    first = flow.add(
        "FollowClick_FirstFrame",
        3,
        positive=positive[0],
        negative=negative[0],
        vae=demo[2],
        image=photo[0],
        regions=region[0],
        motion_model=demo[3],
    )
    model = flow.add("FollowClick_ApplyMotionModel", 3, model=demo[0], motion_model=demo[3])
    frames = sample(flow, 4, model[0], (first[0], first[1]), first[2], demo[2], cfg=3.5)
    end(flow, 5, frames[0])
    return flow


def photo_crop_and_stitch(infos: dict) -> Workflow:
    flow = Workflow("photo_crop_and_stitch", NOTES["photo_crop_and_stitch"], infos)
    photo = flow.add("FollowClick_ExamplePhoto", 0, picture="rocket")
    demo = flow.add("FollowClick_LoadDemoModel", 0)
    where = flow.add("FollowClick_ClickToMask", 1, image=photo[0], segmenter=demo[4], clicks=clicks(ROCKET), grow=2)
    flow.add("MaskPreview", 1, mask=where[0])
    crop = flow.add("FollowClick_CropRegion", 2, image=photo[0], mask=where[0], context=1.4)
    flow.add("PreviewImage", 2, "What the model sees", images=crop[0])
    positive, negative = texts(flow, 3, demo[1], "launch")
    region = flow.add(
        "FollowClick_MotionRegion", 3, clip=demo[1], mask=crop[1], motion_prompt="launch", motion_magnitude=8.0
    )
    first = flow.add(
        "FollowClick_FirstFrame",
        4,
        positive=positive[0],
        negative=negative[0],
        vae=demo[2],
        image=crop[0],
        regions=region[0],
        motion_model=demo[3],
    )
    model = flow.add("FollowClick_ApplyMotionModel", 4, model=demo[0], motion_model=demo[3])
    frames = sample(flow, 5, model[0], (first[0], first[1]), first[2], demo[2], cfg=3.5)
    whole = flow.add("FollowClick_StitchRegion", 6, frames=frames[0], place=crop[2])
    end(flow, 6, whole[0])
    return flow


def sd15(infos: dict, name: str, motion_file: str, pose: str | None = None) -> Workflow:
    """A Stable Diffusion 1.5 checkpoint with a motion model; `pose`: where pose frames come from, if any do."""
    flow = Workflow(name, NOTES[name], infos)
    photo = flow.add("FollowClick_ExamplePhoto", 0, picture="rocket")
    base = flow.add("CheckpointLoaderSimple", 0, ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    motion = flow.add("FollowClick_LoadMotionModel", 0, name=motion_file)
    segmenter = flow.add("FollowClick_LoadSegmenter", 0, name="demo")
    where = flow.add(
        "FollowClick_ClickToMask", 1, image=photo[0], segmenter=segmenter[0], clicks=clicks(ROCKET), grow=2
    )
    flow.add("MaskPreview", 1, mask=where[0])
    positive, negative = texts(flow, 2, base[1], "a rocket at night, floodlights, photo")
    region = flow.add(
        "FollowClick_MotionRegion", 2, clip=base[1], mask=where[0], motion_prompt="launch", motion_magnitude=8.0
    )
    first = flow.add(
        "FollowClick_FirstFrame",
        3,
        positive=positive[0],
        negative=negative[0],
        vae=base[2],
        image=photo[0],
        regions=region[0],
        motion_model=motion[0],
    )
    model = flow.add("FollowClick_ApplyMotionModel", 3, model=base[0], motion_model=motion[0])
    conditions = (first[0], first[1])
    if pose:
        control = flow.add("ControlNetLoader", 4, control_net_name="control_v11p_sd15_openpose_fp16.safetensors")
        frames = _poses_of_video(flow) if pose == "video" else flow.add("LoadImageSetFromFolderNode", 4, folder="poses")
        flow.add("PreviewImage", 4, "The poses, one per frame", images=frames[0])
        guided = flow.add(
            "ControlNetApplyAdvanced",
            5,
            positive=conditions[0],
            negative=conditions[1],
            control_net=control[0],
            image=frames[0],
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        conditions = (guided[0], guided[1])
    frames = sample(flow, 5, model[0], conditions, first[2], base[2])
    end(flow, 6, frames[0])
    return flow


def _poses_of_video(flow: Workflow) -> Node:
    video = flow.add("LoadVideo", 4, file="driving.mp4")
    parts = flow.add("GetVideoComponents", 4, video=video[0])
    sixteen = flow.add("ImageFromBatch", 4, image=parts[0], batch_index=0, length=16)
    return flow.add("OpenposePreprocessor", 4, image=sixteen[0], resolution=512, detect_hand="disable")


CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
CONTROLNET = "control_v11p_sd15_openpose_fp16.safetensors"
PHOTO = "For your own photo, put *Load Image* in the place of *Example Photo*."
NOTES = {
    "two_objects": f"""
## Two objects, two motions

1. In **Click to Mask** the saucer is object 1 and the rocket object 2; *Another object* begins the next one. Each says
   what it does and how strongly.
2. **Motion Region** makes a region of each; where the editor says nothing, its own prompt and magnitude count.
3. Queue. The clip is saved in `output`.

Everything that is needed comes with the pack. {PHOTO}
""",
    "photo_crop_and_stitch": f"""
## A large photo, one object

The model works at its own size. **Crop Region** gives it only the part around what you clicked, and **Stitch Region**
puts the clip back, so the rest of every frame is the photo's own pixels. *context* says how much room the object gets.

Everything that is needed comes with the pack. {PHOTO} A photo of twelve megapixels is what this is for.
""",
    "sd15_animatediff": f"""
## Stable Diffusion 1.5 with AnimateDiff

Download, and press R:

{downloads(CHECKPOINT, "mm_sd15_v3.safetensors")}

AnimateDiff never learned to start from a picture. The clip starts from the photo with noise on it, and the magnitude
says how much; outside the clicked region the photo is held. Any checkpoint of the 1.5 family and AnimateDiff v1, v2, v3
will do. {PHOTO}
""",
    "sd15_pia": f"""
## Stable Diffusion 1.5 with PIA

Download, and press R:

{downloads(CHECKPOINT, "pia.ckpt")}

PIA starts from the photo. How much each frame may differ from it follows from the magnitude, inside the clicked region
only. Any checkpoint of the 1.5 family will do. {PHOTO}
""",
    "pose_controlnet": f"""
## A pose for every frame, from a video

Download, and press R:

{downloads(CHECKPOINT, "mm_sd15_v3.safetensors", CONTROLNET)}

The pose comes from **OpenPose Pose Recognition** of the pack
[comfyui_controlnet_aux](https://github.com/Fannovel16/comfyui_controlnet_aux), which the Manager installs. Put a video
of at least 16 frames into `input` as `driving.mp4`, or choose another in *Load Video*. With ready pose frames, use
*pose_controlnet_folder*, which needs no other pack. Click on the person in your photo. {PHOTO}
""",
    "pose_controlnet_folder": f"""
## A pose for every frame, from a folder

Download, and press R:

{downloads(CHECKPOINT, "mm_sd15_v3.safetensors", CONTROLNET)}

Put the pose pictures (OpenPose's coloured skeletons on black) into the folder `input/poses`, named in their order:
as many as *length* in *First Frame*, or a single one for all. *pose_controlnet* makes them from a video. Click on the
person in your photo. {PHOTO}
""",
}


def main() -> None:
    server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    infos = json.load(urllib.request.urlopen(f"{server}/object_info")) | {"OpenposePreprocessor": OPENPOSE}
    flows = [
        two_objects(infos),
        photo_crop_and_stitch(infos),
        sd15(infos, "sd15_animatediff", "mm_sd15_v3.safetensors"),
        sd15(infos, "sd15_pia", "pia.ckpt"),
        sd15(infos, "pose_controlnet", "mm_sd15_v3.safetensors", pose="video"),
        sd15(infos, "pose_controlnet_folder", "mm_sd15_v3.safetensors", pose="folder"),
    ]
    for flow in flows:
        (HERE / f"{flow.name}.json").write_text(json.dumps(flow.opened(), indent=1, ensure_ascii=False) + "\n")
        (HERE / "api" / f"{flow.name}.json").write_text(json.dumps(flow.api(), indent=2, ensure_ascii=False) + "\n")
        print(HERE / f"{flow.name}.json")


if __name__ == "__main__":
    main()
