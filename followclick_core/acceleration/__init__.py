"""Ways to sample faster: what keeps the result (to rounding), and what gives some of it up for time."""
