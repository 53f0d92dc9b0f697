"""An exact reduction: a deep linear network of any width trains as one of width rank(X) + K.

Let z_l = W_l z_{l-1}, W_1 (h, d), W_2 .. W_{L-1} (h, h), W_L (K, h), and let the hidden-to-hidden
layers start as scaled orthogonal matrices, W_l(0) = eps_l Q_l. Rotate the l-th hidden space by
P_l = Q_l ... Q_2 (P_1 = I). In these coordinates the hidden layers start at eps_l I, the last one
at V = W_L(0) P_{L-1}, and the gradient of any loss L(W_L ... W_1 X) with respect to W_l is

    (W_L ... W_{l+1})' G (W_{l-1} ... W_1 X)',    G = dL / d(output).

At the start its columns lie in S = span(W_1 X) + span(V'), and so do its rows (those of the first
layer in span X). A step of gradient descent changes eps_l I by a matrix that maps S to S and is
zero off S; so S stays invariant under every layer, and by induction every later gradient lies in
S x S too. Off S the layers W_2 .. W_{L-1} stay multiples of I, W_L stays zero, and W_1 off span X
keeps its initial value up to a factor: 1, or with weight decay the product of 1 - lr * decay, and
something similar with momentum. All that moves are the (m, m) matrices on S, m <= rank X + K.

When it applies: linear layers without biases; W_2 .. W_{L-1} start as multiples of orthogonal
matrices (the first and the last may start anywhere); any loss of the outputs; any data whose rank
is small next to the width, mini-batches of it included; an optimiser that commutes with rotations:
gradient descent with momentum and weight decay, but not Adam, which scales each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deeprep.base.validate import require


@dataclass(frozen=True)
class ReducedDeepLinear:
    """A small deep linear network that trains exactly as a wide one; see `reduce_deep_linear`.

    Attributes
    ----------
    weights
        W_1 (m + 1, r + 1), W_2 .. W_{L-1} (m + 1, m + 1), W_L (K, m + 1): train these, with any
        loss of the outputs, instead of the wide ones. m <= r + K; r is the rank of the inputs.
    inputs
        (N, r + 1) inputs of the small network, in the order of the samples given. Their norms
        and products, and those of the features of every hidden layer, are those of the wide
        network; so are C_l and D_l.
    initial_weights
        The wide network's weights that were given.

    Notes
    -----
    The last coordinate is a witness: no sample and no output reaches it, so its weight goes through
    what every weight off S goes through, weight decay and momentum included, and `rebuild` reads
    from it how far the wide matrices have decayed there.
    """

    weights: list[Tensor]
    inputs: Tensor
    initial_weights: list[Tensor]
    _bases: list[Tensor]  # orthonormal columns: of span X, then of S as each hidden space has it

    def rebuild(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the wide network's weights at the moment when the small one's are `weights`.

        Parameters
        ----------
        weights
            Of the shapes of `self.weights`.

        Raises
        ------
        ValueError
            A number or a shape that differs.
        """
        expected = [tuple(weight.shape) for weight in self.weights]
        found = [tuple(weight.shape) for weight in weights]
        require("weights", found, found == expected, f"shapes {expected}")
        rebuilt = []
        for index, (weight, start) in enumerate(zip(weights[:-1], self.weights[:-1], strict=True)):
            factor = weight[-1, -1] / start[-1, -1]
            moved = (weight - factor * start)[:-1, :-1]
            before, after = self._bases[index], self._bases[index + 1]
            rebuilt.append(factor * self.initial_weights[index] + after @ moved @ before.T)
        return [*rebuilt, weights[-1][:, :-1] @ self._bases[-1].T]


def reduce_deep_linear(weights: Sequence[Tensor], inputs: Tensor) -> ReducedDeepLinear:
    """Turn a wide deep linear network at its start into a small one that trains exactly alike.

    After any number of steps of gradient descent, `rebuild` of the small network's weights gives
    the wide one's, to rounding. With ``inputs = torch.eye(d)`` the small network stands for the
    wide one on any inputs at all; its width is then at most d + K.

    Parameters
    ----------
    weights
        W_1 (h, d), W_2 .. W_{L-1} (h, h), W_L (K, h): L >= 2 floating-point matrices, all but the
        first and the last multiples of orthogonal ones. float64 keeps the reduction exact over
        many thousand steps.
    inputs
        (N, d) samples, of the dtype of the weights.

    Raises
    ------
    ValueError
        Shapes that do not chain, inputs that are all zero or not finite, or a middle matrix that is
        no multiple of an orthogonal one.

    Notes
    -----
    The module's docstring has the proof and says when it applies. The idea that gradient descent
    from an orthogonal initialisation moves a small subspace only is in Yaras, Wang, Hu, Zhu,
    Balzano, Qu, "Invariant low-dimensional subspaces in gradient descent for learning deep matrix
    factorizations", 2023; here no assumption on the data is needed.

    Examples
    --------
    >>> middle = [0.3 * torch.linalg.qr(torch.randn(200, 200).double()).Q for _ in range(3)]
    >>> first, last = torch.randn(200, 50).double(), torch.randn(3, 200).double()
    >>> small = reduce_deep_linear([first, *middle, last], torch.randn(30, 50).double())
    >>> [tuple(weight.shape) for weight in small.weights]
    [(34, 31), (34, 34), (34, 34), (34, 34), (3, 34)]
    """
    weights = list(weights)
    _check_shapes(weights, inputs)
    scales = [_orthogonal_scale(f"weights[{i}]", w) for i, w in enumerate(weights[1:-1], start=1)]

    left, sizes, right = torch.linalg.svd(inputs, full_matrices=False)
    rank = _rank(sizes, max(inputs.shape))
    require("inputs", "zero everywhere", rank > 0, "a matrix of rank >= 1")
    span = right[:rank].T
    image = weights[0] @ span
    rows = weights[-1].T
    for weight, scale in zip(reversed(weights[1:-1]), reversed(scales), strict=True):
        rows = weight.T @ rows / scale
    # Both at the same scale: the rank must not depend on how large the layers start.
    spanning = torch.cat([_scaled_to_one(image), _scaled_to_one(rows)], dim=1)
    columns, lengths, _ = torch.linalg.svd(spanning, full_matrices=False)
    bases = [span, columns[:, : _rank(lengths, max(spanning.shape))]]
    for weight, scale in zip(weights[1:-1], scales, strict=True):
        bases.append(weight @ bases[-1] / scale)

    identity = torch.eye(bases[1].shape[1] + 1, dtype=inputs.dtype, device=inputs.device)
    return ReducedDeepLinear(
        [
            torch.block_diag(bases[1].T @ image, identity[:1, :1]),
            *(scale * identity for scale in scales),
            torch.nn.functional.pad(weights[-1] @ bases[-1], (0, 1)),
        ],
        torch.nn.functional.pad(left[:, :rank] * sizes[:rank], (0, 1)),
        weights,
        bases,
    )


def draw_wide_deep_linear(
    width: int,
    input_dimension: int,
    num_classes: int,
    depth: int,
    init_scale: float,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Draw a network that trains as an orthogonally initialised one of `width` does, in law.

    Rotated as in `reduce_deep_linear`, a network whose weights are init_scale times uniformly drawn
    matrices with orthonormal rows or columns has W_1 = init_scale [I; 0], W_l = init_scale I and
    W_L = init_scale V, V (K, width) uniform with orthonormal rows: only V is random, and of it only
    the products with the image of the inputs matter. So the network is one of width d + K at most,
    whatever `width`: memory is width * K while V is drawn, and (d + K)^2 a layer.

    Parameters
    ----------
    width
        Hidden width h >= max(d, K) of the network that is stood for.
    input_dimension
        Number d of features of a sample.
    num_classes
        Number K of outputs.
    depth
        Number L >= 2 of weight matrices.
    init_scale
        Scale > 0 of every weight matrix.
    generator
        Source of the draw; default: torch's.

    Returns
    -------
    Weights, float64, of a network of width min(width, d + K).

    Raises
    ------
    ValueError
        An argument outside these ranges.

    Examples
    --------
    >>> weights = draw_wide_deep_linear(100_000, 50, 3, depth=5, init_scale=0.1)
    >>> [tuple(weight.shape) for weight in weights]
    [(53, 50), (53, 53), (53, 53), (53, 53), (3, 53)]
    """
    narrowest = max(input_dimension, num_classes)
    require("width", width, width >= narrowest, f">= {narrowest}, the inputs' or outputs' number")
    require("depth", depth, depth >= 2, ">= 2 weight matrices")
    require("init_scale", init_scale, init_scale > 0, "> 0")
    last = torch.nn.init.orthogonal_(
        torch.empty(num_classes, width, dtype=torch.float64), generator=generator
    )
    hidden = min(width, input_dimension + num_classes)
    if hidden < width:
        beyond = torch.linalg.qr(last[:, input_dimension:].T, mode="r").R
        last = torch.cat([last[:, :input_dimension], beyond.T], dim=1)
    identity = torch.eye(hidden, dtype=torch.float64)
    weights = [identity[:, :input_dimension], *[identity] * (depth - 2), last]
    return [init_scale * weight for weight in weights]


def _check_shapes(weights: list[Tensor], inputs: Tensor) -> None:
    require("weights", f"{len(weights)} matrices", len(weights) >= 2, "at least 2 matrices")
    require("inputs", f"of shape {tuple(inputs.shape)}", inputs.ndim == 2, "one of shape (N, d)")
    hidden = weights[0].shape[0] if weights[0].ndim == 2 else -1
    expected = [(hidden, inputs.shape[1]), *[(hidden, hidden)] * (len(weights) - 2)]
    expected.append((weights[-1].shape[0], hidden))
    found = [tuple(weight.shape) for weight in weights]
    wanted = "shapes (h, d), (h, h) .. (h, h), (K, h) for inputs of shape (N, d)"
    require("weights", f"{found} for d = {inputs.shape[1]}", found == expected, wanted)
    for name, tensor in [(f"weights[{i}]", w) for i, w in enumerate(weights)] + [
        ("inputs", inputs)
    ]:
        dtype = inputs.dtype
        fits = tensor.dtype == dtype and dtype in (torch.float32, torch.float64)
        require(name, tensor.dtype, fits, "float32 or float64, the same for weights and inputs")
        require(name, "not finite", bool(tensor.isfinite().all()), "finite")


def _orthogonal_scale(name: str, weight: Tensor) -> float:
    """Return eps of a matrix (h, h) that is eps times an orthogonal one; raise if it is not."""
    size = weight.shape[0]
    scale = float(torch.linalg.matrix_norm(weight)) / math.sqrt(size)
    require(name, "zero", scale > 0, "a positive multiple of an orthogonal matrix")
    normalized = weight / scale
    identity = torch.eye(size, dtype=weight.dtype, device=weight.device)
    error = float((normalized.T @ normalized - identity).abs().max())
    tolerance = 100 * size * torch.finfo(weight.dtype).eps
    found = f"{scale:.3g} Q with an entry of Q'Q - I of {error:.3g}"
    wanted = f"a multiple of an orthogonal matrix, to {tolerance:.3g}"
    require(name, found, error <= tolerance, wanted)
    return scale


def _rank(singular_values: Tensor, size: int) -> int:
    """Count the singular values that are more than the rounding of the largest one."""
    rounding = size * torch.finfo(singular_values.dtype).eps * singular_values[0]
    return int((singular_values > rounding).sum())


def _scaled_to_one(columns: Tensor) -> Tensor:
    """Scale a matrix to a largest singular value of 1; zero stays zero."""
    largest = torch.linalg.matrix_norm(columns, 2)
    return columns / torch.where(largest > 0, largest, 1.0)
