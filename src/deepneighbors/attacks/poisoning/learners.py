"""Linear learners whose validation loss can be differentiated with respect to a training point.

Both have scores ``f(x) = sum_i a_i <x_i, x> + b``, so all they need of the data is the Gram matrix, and moving one
training point changes one row and column of it. Arrays are float64, labels -1 and +1.
"""

from abc import ABC, abstractmethod

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit
from sklearn import config_context
from sklearn.svm import SVC

_MARGIN = 1e-6  # dual coefficients this near to 0 or to C count as bound
_SINGULAR = np.log(1e-6)  # determinants below take the pseudo-inverse, as in secml
_NEWTON_STEPS = 100
_ROUNDING = 1e-13  # relative change of the training loss that counts as none


class Learner(ABC):
    """A learner on ``x`` ``(n, d)``, ``y`` ``(n,)``, judged by its loss on ``x_val`` ``(m, d)``, ``y_val`` ``(m,)``.

    ``weights_`` ``(n,)`` are the signed dual coefficients ``a`` and ``bias_`` is b, once :meth:`loss` was asked for.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray, C: float):
        self.x, self.y, self.x_val, self.y_val, self.C = x.copy(), y, x_val, y_val, C
        self.gram, self.cross = x @ x.T, x_val @ x.T
        self.fits = 0
        self._fitted = False
        self.weights_, self.bias_ = np.zeros(len(x)), 0.0

    def move(self, index: int, row: np.ndarray) -> None:
        """Put training point ``index`` at ``row`` ``(d,)``."""
        if np.array_equal(self.x[index], row):
            return
        self.x[index] = row
        self.gram[index] = self.gram[:, index] = self.x @ row
        self.cross[:, index] = self.x_val @ row
        self._fitted = False

    def train(self) -> None:
        """Solve the inner problem, if a point has moved since."""
        if not self._fitted:
            self.fit()
            self.fits += 1
            self._fitted = True

    def loss(self) -> float:
        """Mean validation loss of the trained learner."""
        self.train()
        return float(self.losses(self._validation_margins()).mean())

    def accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of ``x`` ``(k, d)`` that the trained learner gives the label ``y`` ``(k,)``."""
        self.train()
        scores = x @ (self.x.T @ self.weights_) + self.bias_
        return float((np.where(scores >= 0, 1, -1) == y).mean())

    def _validation_margins(self) -> np.ndarray:
        return self.y_val * (self.cross @ self.weights_ + self.bias_)

    @abstractmethod
    def fit(self) -> None:
        """Set ``weights_`` and ``bias_``."""

    @abstractmethod
    def losses(self, margins: np.ndarray) -> np.ndarray:
        """Loss of each validation point from its margin ``y f(x)``."""

    @abstractmethod
    def gradient(self, indices: np.ndarray) -> np.ndarray:
        """Gradient ``(len(indices), d)`` of :meth:`loss` in these training points, the learner trained again."""


class LinearSVM(Learner):
    """Soft-margin linear SVM: half the squared norm of w plus C times the sum of hinge losses, solved in the dual by libsvm.

    Parameters
    ----------
    tol
        Accuracy of libsvm (the largest violation of the optimality conditions).
    exact
        Whether the gradient counts that the margin of a point on the margin moves with the point itself; secml leaves
        this term out.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_val: np.ndarray,
        y_val: np.ndarray,
        C: float,
        *,
        tol: float = 1e-3,
        exact: bool = True,
    ):
        super().__init__(x, y, x_val, y_val, C)
        self.exact = exact
        self._solver = SVC(C=C, kernel="precomputed", tol=tol)

    def fit(self) -> None:
        with config_context(assume_finite=True, skip_parameter_validation=True):
            self._solver.fit(self.gram, self.y)
        self.weights_ = np.zeros(len(self.x))
        self.weights_[self._solver.support_] = self._solver.dual_coef_[0]
        self.bias_ = float(self._solver.intercept_[0])

    def losses(self, margins: np.ndarray) -> np.ndarray:
        return np.maximum(0, 1 - margins)

    def gradient(self, indices: np.ndarray) -> np.ndarray:
        """Gradient by the implicit function theorem on the optimality conditions (Biggio, Nelson & Laskov 2012).

        Points on the margin stay on it and the others keep their coefficient: with S the margin, ``f(x_s) = y_s`` fixes
        how ``a_S`` and b answer to a moving point.
        """
        self.train()
        slope = -self.y_val * (self._validation_margins() <= 1) / len(self.y_val)
        common = slope @ self.x_val
        size = np.abs(self.weights_)
        margin = np.flatnonzero((size >= _MARGIN) & (size <= self.C - _MARGIN))
        if len(margin) == 0:
            return self.weights_[indices, None] * common
        answer = self._answer(margin, slope)
        common = common - answer[:-1] @ self.x[margin]
        gradient = self.weights_[indices, None] * common
        if self.exact:
            own = np.zeros(len(self.x))
            own[margin] = answer[:-1]
            gradient -= own[indices, None] * (self.weights_ @ self.x)
        return gradient

    def _answer(self, margin: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """Change of the validation loss with the score demanded at each margin point, ``(|S| + 1,)``."""
        system = np.ones((len(margin) + 1, len(margin) + 1))
        system[:-1, :-1] = self.gram[np.ix_(margin, margin)]
        system[-1, -1] = 0
        system += 1e-9 * np.eye(len(system))
        right = np.append(slope @ self.cross[:, margin], slope.sum())
        if np.linalg.slogdet(system).logabsdet < _SINGULAR:
            return np.linalg.pinv(system) @ right
        return np.linalg.solve(system, right)


class LogisticRegression(Learner):
    """Logistic regression: half the squared norm of w plus C times the sum of log losses, bias free of penalty.

    Newton's method in the dual coefficients, warm-started where the last training ended. One step costs a Cholesky
    factorisation of size n, whatever the number of pixels.
    """

    def fit(self) -> None:
        value = self._objective(self.weights_, self.bias_)
        for _ in range(_NEWTON_STEPS):
            step, shift = self._newton()
            scale, reached = 1.0, self._objective(self.weights_ + step, self.bias_ + shift)
            while reached > value * (1 + _ROUNDING) and scale > 1e-8:
                scale /= 2
                reached = self._objective(self.weights_ + scale * step, self.bias_ + scale * shift)
            self.weights_, self.bias_ = self.weights_ + scale * step, self.bias_ + scale * shift
            gain, value = value - reached, reached
            if gain <= _ROUNDING * value:
                break

    def losses(self, margins: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, -margins)

    def gradient(self, indices: np.ndarray) -> np.ndarray:
        """Gradient by the implicit function theorem on the stationarity of w and b (Demontis et al. 2019).

        With H the Hessian of the training loss and g the gradient of the validation loss, both in (w, b), the loss moves
        by ``-(H^-1 g) . d(gradient of the training loss)`` when a training point moves.
        """
        self.train()
        slope = -self.y_val * expit(-self._validation_margins()) / len(self.y_val)
        scores = self._scores(self.weights_, self.bias_)
        curvature = self._curvature(scores)
        answer, shift = self._solve(slope @ self.x_val, slope.sum(), curvature)
        pull = self._pull(scores)[indices]
        bend = curvature[indices] * (self.x[indices] @ answer + shift)
        return pull[:, None] * answer - bend[:, None] * (self.weights_ @ self.x)

    def _scores(self, weights: np.ndarray, bias: float) -> np.ndarray:
        return self.gram @ weights + bias

    def _pull(self, scores: np.ndarray) -> np.ndarray:
        """Minus the derivative of the training loss in each score; at the optimum these are the dual coefficients."""
        return self.C * self.y * expit(-self.y * scores)

    def _curvature(self, scores: np.ndarray) -> np.ndarray:
        return self.C * expit(scores) * expit(-scores)

    def _objective(self, weights: np.ndarray, bias: float) -> float:
        scores = self._scores(weights, bias)
        return float(0.5 * weights @ (scores - bias) + self.C * np.logaddexp(0, -self.y * scores).sum())

    def _newton(self) -> tuple[np.ndarray, float]:
        """Newton step as a weighted ridge regression on the working response (Hastie et al. 2009, section 4.4.1).

        The new coefficients are ``a' = W (z - K a' - b')`` with curvature W, Gram matrix K and response z, where
        ``W z = W s + pull``; W is not inverted, since it vanishes for points far from the boundary.
        """
        scores = self._scores(self.weights_, self.bias_)
        curvature = self._curvature(scores)
        root, factor = self._factor(curvature)

        def coefficients(response: np.ndarray) -> np.ndarray:
            return response - root * cho_solve(factor, root * (self.gram @ response))

        plain = coefficients(curvature * (scores - self.bias_) + self._pull(scores))
        one = coefficients(curvature)
        shift = float(plain.sum() / one.sum())  # the coefficients of the optimum sum to zero, which fixes the bias
        return plain - shift * one - self.weights_, shift

    def _solve(self, right: np.ndarray, right_bias: float, curvature: np.ndarray) -> tuple[np.ndarray, float]:
        """Solve the (d + 1) equations of the Hessian in (w, b) through one n x n system (Woodbury)."""
        root, factor = self._factor(curvature)
        scaled = root[:, None] * self.x

        def ridge(vector: np.ndarray) -> np.ndarray:
            return vector - cho_solve(factor, scaled @ vector) @ scaled

        column = curvature @ self.x
        plain, coupled = ridge(right), ridge(column)
        shift = float((right_bias - column @ plain) / (curvature.sum() - column @ coupled))
        return plain - shift * coupled, shift

    def _factor(self, curvature: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, bool]]:
        """Root of the curvature and the Cholesky factor of ``I + W^1/2 K W^1/2``."""
        root = np.sqrt(curvature)
        return root, cho_factor(np.eye(len(root)) + root[:, None] * self.gram * root)
