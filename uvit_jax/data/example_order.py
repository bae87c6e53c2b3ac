"""The order of training: which example a position shows, if mirrored, with which caption.

All of it is a function of (seed, position): no host, worker or batch size changes it.
"""

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt64

from uvit_jax.randomness import Stream, seed_sequence


def shuffled(positions: Int[np.ndarray, " n"], size: int, seed: int) -> Int[np.ndarray, " n"]:
    """The examples at these positions of the stream: epoch after epoch, each another permutation.

    An epoch's order is that of Grain's `MapDataset.shuffle`, whose layers take more than twice as
    long. Its seed is drawn from (seed, epoch): with seed + epoch, as in Grain's `repeat`, the
    second epoch of seed 0 would be the first of seed 1.

    Args:
      positions: of the stream.
      size: number of examples in an epoch.
      seed: of the run.
    """
    # Experimental in grain; the public MapDataset.shuffle would be the replacement, at its price.
    shuffle = grain.experimental.index_shuffle
    epochs, places = np.divmod(positions, size)
    drawn = {
        e: int(seed_sequence(seed, Stream.EPOCH, e).generate_state(1)[0])
        for e in set(epochs.tolist())
    }
    seeds = np.array([drawn[e] for e in epochs.tolist()])
    pairs = zip(places.tolist(), seeds.tolist(), strict=True)
    return np.array(
        [shuffle(position, max_index=size - 1, seed=s, rounds=4) for position, s in pairs]
    )


def flips(positions: Int[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, " n"]:
    """True at the (rising) positions that show a mirror image, at even odds."""
    return random_words(positions, seed, Stream.FLIP) >= 2**63


def random_words(
    positions: Int[np.ndarray, " n"], seed: int, stream: Stream
) -> UInt64[np.ndarray, " n"]:
    """A random word for each of these (rising) positions, from Philox keyed by (seed, stream)."""
    block = int(positions[0]) // 4  # Philox counts blocks of four words.
    places = positions - 4 * block
    random = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=block)
    return random.random_raw(int(places[-1]) + 1)[places]
