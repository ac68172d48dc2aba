"""How far apart two right computations of the same can be, on any processor: from the arithmetic, not from a machine.

Processors differ in how they add: in how many numbers a register holds, in whether a product and a sum are rounded once
or twice, and in which kernel multiplies (vec_dot, llamafile's GEMM, repacked weights), which depends on the number of
rows too. So the order of sums differs, from processor to processor and from batch to batch. What does not differ is the
precision in which a number is kept. A last bit becomes more where a sum is then rounded to a coarser type, since it can
decide which way: F16 in the cache, in flash attention and in the table of GELU, eight bits in products with quantised
weights. Then the difference is one step of that type, whatever the processor.

Rounding errors are taken as independent, evenly spread over half a step to either side (N. Higham and T. Mary, "A new
approach to probabilistic rounding error analysis", 2019). Mostly thousands of numbers are compared; the largest of them
is 4 to 5 standard deviations. The tiny models have rows of weights of length 1, so that an error leaves a product as
large as it came in, and logits of standard deviation 1 to 2.

tests/processors.py runs tests as other processors would.
"""

from __future__ import annotations

import math

#: Half a step, relative to the number: the largest error of one rounding.
F32, F16 = 2.0**-24, 2.0**-11
#: Standard deviation of a rounding error, in half steps.
EVENLY = 1 / math.sqrt(3)

#: The longest sum in a tiny model, and how many matrix products follow each other: five in each of four layers.
SUM, PRODUCTS = 128, 20
#: Standard deviation of what the order of sums changes in logits of size 2: 3.5e-6. Adding n numbers one by one rounds
#: n partial sums, which grow to the whole: together sqrt(n / 2) roundings of it. There are two computations.
_ORDER = 2 * F32 * EVENLY * math.sqrt(2 * PRODUCTS * SUM / 2)
#: Everything in F32. Norms and the softmax can make an error a few times as large.
ORDER = 1e-4
assert 25 * _ORDER < ORDER < 50 * _ORDER

#: GELU, which the CPU looks up by x rounded to F16, in a table of F16 (ggml_vec_gelu_f32). If x is rounded to its other
#: neighbour, the result moves by a step, 2 F16, times x times the slope: in root mean square 0.8 for x of size 1, and
#: 0.7 since most numbers are not powers of two. If all lookups of a layer do so, each output of ffn_down moves by as
#: much; after n layers by sqrt(n) of it, and by a half more for what each makes of those before: 9e-4 after two.
_LOOKUP = 2 * F16 * 0.8 * 0.7


def _gelu(lookups: int) -> float:
    return _LOOKUP * math.sqrt(lookups + max(lookups - 1, 0) / 2)


#: The tiny encoder, whose activations are GELU. tests/encoders.py has it in numpy, to try that.
GELU = 5e-3
assert 5 * _gelu(2) < GELU < 7 * _gelu(2)

#: GELU and its approximation by tanh differ by up to 4.8e-4, at 2.7 to either side of 0. A row of weights of
#: length 1 makes as much of it; five standard deviations, if it were as much everywhere.
TANH = 5 * 4.8e-4


def encoder(lookups: int = 0, roundings: int = 0) -> float:
    """Six standard deviations of what F16 changes in embeddings of size 1.

    GELU is looked up so often one after the other, and numbers of size 1 are rounded so often before a product.
    """
    return ORDER + 6 * math.hypot(_gelu(lookups), F16 * EVENLY * math.sqrt(roundings))


#: Standard deviation of what keys and values in F16 change in logits of size 2; with flash attention also queries,
#: weights, and sums over 64 positions. In four layers: 4e-3.
_HALF = 2 * F16 * EVENLY * math.sqrt(4 * (4 + 64 / 6))
HALF = 3e-2
assert 5 * _HALF < HALF < 10 * _HALF

#: Products with quantised weights round each 32 activations to steps of the largest / 127, and that is 2.1 standard
#: deviations: a step is 1 / 60 of one. If all are rounded the other way, a product moves by as much.
EIGHT_BITS = 2.1 / 127


def quantised(n_layer: int, size: float = 2) -> float:
    """Standard deviation of what rounding to eight bits can do to logits of that size, with five products a layer."""
    return size * EIGHT_BITS * math.sqrt(5 * n_layer)


def divergence(deviation: float) -> float:
    """The Kullback-Leibler divergence, in nats, that changes of logits with that standard deviation make."""
    return deviation**2 / 2
