"""AnimateDiff Evolved, 1.5.6 for ComfyUI 0.3.64: the AnimateDiff v2 file in its own nodes."""

from pathlib import Path

from benchmarks.sd15.host import ANIMATEDIFF, Clip, Host


def variants(host: Host, argument: str) -> dict[str, Clip]:
    """Args: argument: The pack's folder."""
    host.load_pack(Path(argument).expanduser())
    loaded = host.node("ADE_LoadAnimateDiffModel", model_name=ANIMATEDIFF)[0]
    applied = host.node("ADE_ApplyAnimateDiffModelSimple", motion_model=loaded)[0]
    model = host.node("ADE_UseEvolvedSampling", model=host.plain, beta_schedule="autoselect", m_models=applied)[0]
    return {"AnimateDiff Evolved": Clip(model, host.text_only)}
