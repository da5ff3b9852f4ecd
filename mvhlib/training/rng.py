"""Random numbers that are a function of their key, and of nothing that happened before."""

import numpy as np

#: Streams that must not share numbers although their keys are equal.
STREAMS = ("augmentation", "masks", "mask_ratios", "order", "drop_path", "noise")


def keyed_generator(seed: int, step: int = 0, index: int = 0,
                    stream: str = "noise") -> np.random.Generator:
    """A generator that is a function of its key alone.

    Parameters
    ----------
    seed, step, index
        Not negative. Sample `index` of step `step` gets the same numbers whichever process,
        and whichever micro-batch, it falls into.
    stream
        One of `STREAMS`.

    Notes
    -----
    Philox (Salmon et al., SC 2011) maps (key, counter) to numbers without any state: the key is
    (seed, step), and the two upper words of the counter are (stream, index).
    """
    counter = [0, 0, STREAMS.index(stream), index]
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=counter))
