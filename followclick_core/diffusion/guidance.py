"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598)."""

from ..shapes import Video


def guide(v_cond: Video, v_uncond: Video, scale: float, rescale: float = 0.0) -> Video:
    """v_uncond + scale (v_cond - v_uncond), with its spread pulled back towards that of v_cond.

    At zero terminal SNR a large scale overexposes; `rescale` mixes in a version of the guided prediction with the
    standard deviation of the conditional one (Lin et al. 2024, arXiv:2305.08891, equations 15 and 16).

    Args:
        scale: 1 is no guidance.
        rescale: phi of equation 16, from 0 (off) to 1.
    """
    guided = v_uncond + scale * (v_cond - v_uncond)
    if not rescale:
        return guided
    axes = tuple(range(1, v_cond.ndim))
    ratio = v_cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)
