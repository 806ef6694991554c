"""The paper's ablations at demo scale: variants trained alike on the same clips, and scored on held-out scenes."""
