"""Sizes of launches. Triton has both functions, but they serve its kernels too and take over a hundred times as long.

A motion module needs some twenty of them at every call, which is as much of the processor's time as three launches.
"""


def cdiv(count: int, size: int) -> int:
    """How many tiles of `size` hold `count`."""
    return -(-count // size)


def next_power_of_2(number: int) -> int:
    """The least that is not smaller than `number`, which is 1 or more."""
    return 1 << (number - 1).bit_length()
