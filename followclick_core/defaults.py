"""How the demo model is sampled unless somebody says otherwise; docs/EVALUATION.md has what it gains.

The paper samples with a scale of 7.5 throughout (section 5.1), which sharpens the small model's mistakes as well.
"""

GUIDANCE_SCALE = 3.5
# Share of the sampling, first to last step: what moves where is decided then (Kynkäänniemi et al. 2024).
GUIDANCE_INTERVAL = (0.1, 0.7)
WHOLE_SAMPLING = (0.0, 1.0)
