"""Speed and memory of clips on Stable Diffusion 1.5: this pack, the plain UNet, and other implementations beside it.

    python -m benchmarks.sd15 --device cuda --dtype bf16 --sizes 256,512,768 --frames 16,32 --cfg 7.5 \
        --adapter benchmarks/sd15/adapters/animatediff_evolved.py=~/ComfyUI-peers/ComfyUI-AnimateDiff-Evolved

All variants run in one process and take turns in every round, so what else the machine does meets them alike. Weights
are random with SD1.5's shapes: speed and memory do not depend on their values.
"""
