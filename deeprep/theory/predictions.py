"""What the theory of deep linear networks predicts for C_l and D_l."""

from __future__ import annotations

from deeprep.base.validate import require


def dln_compression_ratio(
    init_scale: float, depth: int, samples_per_class: int, alpha: float = 1.0
) -> float:
    """Predicted factor C_{l+1} / C_l of every layer l >= 1 of a trained deep linear network.

    C_{l+1} / C_l -> eps^2 * alpha^(2/L) / n^(1/L) for nearly orthonormal data, orthogonal
    initialisation of scale eps, and the loss |alpha * W_L...W_1 X - Y|^2 / N trained to
    convergence by gradient descent without weight decay.

    Parameters
    ----------
    init_scale
        eps > 0, scale of the orthogonal initialisation of every weight matrix.
    depth
        Number L >= 2 of weight matrices including the classifier.
    samples_per_class
        Number n >= 1 of samples in each of the (balanced) classes.
    alpha
        Factor > 0 on the network's output in the loss.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Notes
    -----
    The trailing singular values of every matrix stay at eps, so within-class scatter shrinks by
    eps^2 a layer; the K leading ones converge, balanced, to the L-th root of those of the
    end-to-end map Y X^+ / alpha, which are sqrt(n) / alpha, so between-class scatter grows by
    (sqrt(n) / alpha)^(2/L) a layer.

    The rate O(eps^2 / n^(1/L)) is the main theorem of the paper (JMLR 26(220)); the constant above
    agrees with trained networks to about 3 %.

    Examples
    --------
    >>> round(dln_compression_ratio(0.3, depth=6, samples_per_class=10), 4)
    0.0613
    >>> round(dln_compression_ratio(0.3, depth=6, samples_per_class=10, alpha=100.0), 4)
    0.2846
    """
    require("init_scale", init_scale, init_scale > 0, "> 0")
    require("depth", depth, depth >= 2, ">= 2 weight matrices")
    require("samples_per_class", samples_per_class, samples_per_class >= 1, ">= 1")
    require("alpha", alpha, alpha > 0, "> 0")
    return float(init_scale**2 * alpha ** (2 / depth) / samples_per_class ** (1 / depth))


def dln_discrimination(initial_cosine: float, layer: int, depth: int) -> float:
    """Predicted D_l of layer l of a trained deep linear network: it rises linearly with l.

    D_l = 1 - cos_0 * (1 - l / L), the closed form behind the bound D_l >= 1 - O(theta + delta)(2 -
    (l + 1)/L).

    Parameters
    ----------
    initial_cosine
        The intercept cos_0 at l = 0 of the line 1 - D_l against l, in [-1, 1].
    layer
        Index l, 0 for the input up to L for the output.
    depth
        Number L >= 1 of weight matrices including the classifier.

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Notes
    -----
    The main theorem of the paper (JMLR 26(220)), with cos_0 for the constant of its bound.

    Examples
    --------
    >>> [round(dln_discrimination(0.3, layer, depth=6), 2) for layer in (0, 3, 6)]
    [0.7, 0.85, 1.0]
    """
    require("initial_cosine", initial_cosine, -1 <= initial_cosine <= 1, "in [-1, 1]")
    require("depth", depth, depth >= 1, ">= 1 weight matrices")
    require("layer", layer, 0 <= layer <= depth, f"in 0..depth = {depth}")
    return 1.0 - initial_cosine * (1.0 - layer / depth)


def orthonormal_compression(samples_per_class: int, num_samples: int) -> float:
    """C_0 of exactly orthonormal inputs in balanced classes.

    C_0 = (1 - 1/n) / (1/n - 1/N): every sample is at squared distance 1 - 1/n from its class mean,
    and every class mean at squared distance 1/n - 1/N from the global mean, because <x_i, x_j> = 1
    if i = j else 0.

    Parameters
    ----------
    samples_per_class
        Number n >= 1 of samples in each class.
    num_samples
        Number N of samples in all classes together; a multiple K * n of n with K >= 2.

    Raises
    ------
    ValueError
        n < 1, or N not a multiple of n that is at least 2 n.

    Examples
    --------
    >>> round(orthonormal_compression(10, num_samples=30), 6)
    13.5
    """
    require("samples_per_class", samples_per_class, samples_per_class >= 1, ">= 1")
    balanced = num_samples >= 2 * samples_per_class and num_samples % samples_per_class == 0
    wanted = f"a multiple of samples_per_class = {samples_per_class}, at least twice it"
    require("num_samples", num_samples, balanced, wanted)
    return (1 - 1 / samples_per_class) / (1 / samples_per_class - 1 / num_samples)
