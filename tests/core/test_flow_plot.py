import numpy as np

from followclick_core.flow import measure_motion
from followclick_core.flow.plot import _INSIDE, _OUTSIDE, SIZE, plot_motion


def rows_of(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The rows below the legend in which a curve of this colour runs."""
    return np.flatnonzero((picture[60:] == colour).all(axis=-1).any(axis=1))


def test_the_plot_shows_the_object_above_the_rest(moving_square):
    frames, mask = moving_square
    picture = plot_motion(measure_motion(frames, mask))
    assert picture.shape == (SIZE[1], SIZE[0], 3) and picture.dtype == np.uint8
    assert rows_of(picture, _INSIDE).max() < rows_of(picture, _OUTSIDE).min()


def test_a_clip_of_two_equal_frames_has_a_plot_too(moving_square):
    frames, mask = moving_square
    picture = plot_motion(measure_motion(frames[[0, 0]], mask))
    assert len(rows_of(picture, _INSIDE)) and not np.isnan(picture).any()
